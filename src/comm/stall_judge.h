// File: stall_judge.h
//
// Decides when ranks that seem to wait for each other have done so long enough
// that it is certain.
//
//   StallJudge judge(std::chrono::seconds(2));
//   while (is_anyone_stalled()) {
//     if (auto verdict = judge.look(read_statuses(), Clock::now())) {
//       publish(*verdict);
//     }
//   }
//
// A verdict needs ranks that are stuck by themselves (wait_graph.h), in the
// same waits as in a look some time before, all of which have said so again
// since. Then all of them were in these waits at the time of the first look.
// It holds for whoever waits for them as well. No wait is judged twice.
//
// Pure; for one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/rank_status.h"

namespace nfold {

struct StallVerdict {
  // Rank and RankWait::id.
  std::vector<std::pair<int, std::uint64_t>> waits;
  std::string text;  // what is wrong
};

std::string text_of(const StallVerdict& verdict);
StallVerdict stall_verdict_of(const std::string& text);

class StallJudge {
 public:
  using Clock = std::chrono::steady_clock;

  // `apart`: how long a stuck rank is watched at least.
  explicit StallJudge(std::chrono::milliseconds apart) : apart_(apart) {}

  std::optional<StallVerdict> look(const std::vector<RankStatus>& statuses,
                                   Clock::time_point now);

 private:
  struct Seen {
    std::set<std::uint64_t> waits;
    std::uint64_t beat = 0;
    Clock::time_point time;
  };

  const std::chrono::milliseconds apart_;
  std::map<int, Seen> seen_;  // rank -> when it was first seen stuck so
  std::set<std::pair<int, std::uint64_t>> judged_;
};

}  // namespace nfold
