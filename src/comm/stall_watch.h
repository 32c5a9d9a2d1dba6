// File: stall_watch.h
//
// Finds ranks that wait for each other in different groups, which no group can
// see by itself, and ends their waits with an error that says so on each.
// One for each World of several ranks.
//
//   auto callers = std::make_shared<BlockedCallers>();
//   auto watch = std::make_unique<StallWatch>(
//       StallWatch::Place{store, rank, size}, callers, times_of(2s));
//   // groups note in `callers` who waits in them
//
// [Note: Stalls]
// A rank whose callers have all waited for a while says in the store what for,
// again and again until one goes on. Rank 0 looks at what such ranks say
// (stall_judge.h); the idle look is one request for a number. When some of
// them can never go on it leaves a verdict, which waiting ranks look for. A
// rank that is named in it first sets the reason for which its group is about
// to fail, then waits a moment until all that are named have done so, since
// each closes connections as it fails; then it makes its collective fail.
//
// Nothing is sent while nobody has waited for long, except for that number, and
// then a few requests from each rank that does at each tick.
//
// The thread has a connection of its own, as another thread may keep the
// store's busy for minutes. It ends for good when the store does not answer.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "comm/blocked_callers.h"

namespace nfold {

struct StallTimes {
  // A rank that has waited so long says what for.
  std::chrono::milliseconds stalled_after = std::chrono::seconds(2);
  // How often ranks look.
  std::chrono::milliseconds tick = std::chrono::seconds(1);
  // How long ranks that seem stuck are watched before the verdict.
  std::chrono::milliseconds apart = std::chrono::seconds(2);
};
// Of WorldOptions::stall_check.
StallTimes times_of(std::chrono::milliseconds stall_check);

class StallWatch {
 public:
  struct Place {
    c10::intrusive_ptr<c10d::Store> store;  // the job's
    int rank = 0;
    int size = 1;
  };

  StallWatch(const Place& place, std::shared_ptr<BlockedCallers> callers,
             const StallTimes& times);
  // Does not wait for a store that does not answer.
  ~StallWatch();
  StallWatch(const StallWatch&) = delete;
  StallWatch& operator=(const StallWatch&) = delete;

 private:
  struct Run;
  std::shared_ptr<Run> run_;  // shared with the thread
  std::thread thread_;
};

}  // namespace nfold
