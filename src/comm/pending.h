// File: pending.h
//
// What a Pending (nfold/collectives.h) points at: the one-time result of a
// collective, set by the group's thread and waited for by the caller.
// Callable from any thread. What is waited for, if given, is how a caller that
// blocks shows up in blocked_callers.h.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "comm/blocked_callers.h"
#include "comm/collectives_call.h"
#include "nfold/collectives.h"

namespace nfold {

// A collective as it was issued.
struct IssuedCall {
  CollectiveCall call;
  std::string label;
  int group = 0;                              // its number
  std::shared_ptr<BlockedCallers> callers{};  // may be null
};

BlockedCallers::Wait wait_for(const IssuedCall& issued);

class Pending::State {
 public:
  // Gets the text of the error, or null.
  using WhenDone = std::function<void(const std::string* error)>;

  // What the pending waits for, which its destructor no longer does. Null if
  // it was complete from the start.
  static std::shared_ptr<State> release(Pending pending);

  explicit State(std::shared_ptr<const IssuedCall> issued = nullptr)
      : issued_(std::move(issued)) {}

  // Exactly one of these is called, once.
  void succeed();
  void fail(std::string text);

  bool is_done() const;
  // Blocks until one of the above was called.
  void wait_until_done() const;
  // As above, and raises c10::DistBackendError with the text of fail().
  void wait() const;
  // Calls it once, after waiters were woken: on the thread that finishes, or
  // at once if that has happened. It must not throw. One for each state.
  void when_done(WhenDone call);

 private:
  void finish(std::unique_ptr<const std::string> error);

  const std::shared_ptr<const IssuedCall> issued_;
  mutable std::mutex mutex_;
  mutable std::condition_variable done_;
  bool is_done_ = false;                      // guarded by mutex_
  std::unique_ptr<const std::string> error_;  // set once, before is_done_
  WhenDone when_done_;                        // guarded by mutex_
};

}  // namespace nfold
