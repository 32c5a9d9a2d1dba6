// File: rank_status.h
//
// What the callers of one rank wait for, as plain data that ranks leave for
// each other when they have waited for long.
//
//   RankStatus status{.rank = 1, .waits = {...}, .num_entered = {{2, 18}}};
//   set_text(store, key, text_of(status));
//   status = rank_status_of(text_at(store, key));
//
// Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nfold {

// One caller that waits for other ranks.
struct RankWait {
  std::uint64_t id = 0;  // of the rank's waits, never the same again
  int group = 0;         // number of the group, the same on all ranks
  std::string group_name{};
  // For a collective: it ends when every rank of the group has entered so many
  // and this one.
  std::uint64_t sequence = 0;
  // Outside of collectives: the one rank that this one waits for, else -1.
  int peer = -1;
  // "all_reduce #3 of 8 float32", or what the peer has not done: "has not
  // begun its update of blocks.3 (version 7)".
  std::string what{};
  std::string label{};  // where the caller is: "step 12, gradient bucket 3"
  std::chrono::milliseconds duration{0};
};

struct RankStatus {
  int rank = 0;
  // Grows with every status that the rank publishes.
  std::uint64_t beat = 0;
  // One for each caller of the rank, if all of them wait. Empty where one does
  // not: it may still enter anything.
  std::vector<RankWait> waits{};
  // Number of a group of this rank -> how many of its collectives the rank has
  // entered.
  std::map<int, std::uint64_t> num_entered{};
};

// Ranks of one job run one version, so the form is nobody else's business.
std::string text_of(const RankStatus& status);
RankStatus rank_status_of(const std::string& text);

}  // namespace nfold
