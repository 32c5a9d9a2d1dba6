// File: blocked_callers.h
//
// Which callers of this rank wait for other ranks, and in which of its groups:
// what stall_watch.h tells the others, and where it ends a wait that cannot
// end by itself. One for each World, kept by it and by its groups.
//
//   callers->note_caller();                     // issues a collective
//   {
//     const BlockedCallers::Scope scope(callers.get(), {...});
//     sleep_until_done();                       // waits for other ranks
//   }
//
// A rank only counts as waiting while every thread that has ever issued one of
// its collectives, and still runs, waits: any other may issue the next.
//
// Callable from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "comm/collectives_call.h"
#include "comm/rank_status.h"

namespace nfold {

class BlockedCallers : public std::enable_shared_from_this<BlockedCallers> {
 public:
  using Clock = std::chrono::steady_clock;

  // A group of this rank, as the watch sees it. Called under a lock of this
  // class: must not wait, nor call it.
  class WatchedGroup {
   public:
    virtual ~WatchedGroup() = default;
    virtual const std::string& watched_name() const = 0;
    // How many of its collectives this rank has entered.
    virtual std::uint64_t num_entered() const = 0;
    virtual std::string label() const = 0;
    // Whatever fails from now on fails for this reason.
    virtual void condemn(const std::string& reason) = 0;
    // Makes what is under way fail.
    virtual void abort() = 0;
  };

  // What a caller waits for. All that is pointed at outlives the wait.
  struct Wait {
    int group = 0;
    // A collective and its label ...
    const CollectiveCall* call = nullptr;
    const std::string* label = nullptr;
    // ... or what one rank of the world has not done.
    int peer = -1;
    const std::function<std::string()>* missing = nullptr;
  };

  // While it lives the calling thread waits. Null: nobody watches.
  class Scope {
   public:
    Scope(BlockedCallers* callers, const Wait& wait);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    // Why this wait can never end, or empty.
    std::string reason() const;

   private:
    friend class BlockedCallers;
    BlockedCallers* const callers_;
    const Wait wait_;
    const std::thread::id thread_;
    const Clock::time_point start_;
    std::uint64_t id_ = 0;
    std::string reason_;  // guarded by the mutex of callers_
  };

  BlockedCallers();
  BlockedCallers(const BlockedCallers&) = delete;
  BlockedCallers& operator=(const BlockedCallers&) = delete;

  // The calling thread issues collectives, until it ends.
  void note_caller();

  void add(int number, WatchedGroup* group);
  // When this returns the group is not used any more.
  void remove(int number);

  // For how long all callers have waited; zero if one does not, or there is
  // none.
  std::chrono::milliseconds blocked_for(Clock::time_point now) const;
  // rank and beat are left to the caller.
  RankStatus status(Clock::time_point now) const;

  // Of the wait with this id, if it still is under way. First the reason of
  // what is about to fail; then it fails.
  void condemn(std::uint64_t id, const std::string& reason);
  void abort(std::uint64_t id);

 private:
  class ThreadNote;

  void forget_thread(std::thread::id thread);
  bool is_blocked() const;              // with mutex_ held
  Scope* find(std::uint64_t id) const;  // with mutex_ held

  // Never the same again, unlike an address.
  const std::uint64_t number_;

  mutable std::mutex mutex_;
  // All guarded by mutex_.
  std::uint64_t num_waits_ = 0;
  std::list<Scope*> waits_;
  std::set<std::thread::id> threads_;
  std::map<int, WatchedGroup*> groups_;
};

}  // namespace nfold
