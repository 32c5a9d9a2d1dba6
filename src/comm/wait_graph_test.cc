#include "comm/wait_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

RankWait in_collective(int group, std::uint64_t sequence) {
  RankWait wait{.id = 1, .group = group, .sequence = sequence};
  wait.group_name = std::string(1, static_cast<char>('a' + group));
  wait.what = "barrier #" + std::to_string(sequence);
  return wait;
}

RankWait for_peer(int peer) {
  RankWait wait{.id = 1, .group_name = "a", .peer = peer};
  wait.what = "has not begun its update of w (version 3)";
  return wait;
}

std::vector<int> ranks_of(const std::vector<StuckRank>& stuck) {
  std::vector<int> ranks;
  for (const StuckRank& each : stuck) ranks.push_back(each.rank);
  return ranks;
}

std::vector<int> stuck_ranks(const std::vector<RankStatus>& statuses) {
  return ranks_of(find_stuck(statuses));
}

// Rank 0 waits in group a for rank 1, rank 1 in group b for rank 0.
std::vector<RankStatus> crossed() {
  return {{.rank = 0,
           .waits = {in_collective(0, 3)},
           .num_entered = {{0, 4}, {1, 2}}},
          {.rank = 1,
           .waits = {in_collective(1, 2)},
           .num_entered = {{0, 3}, {1, 3}}}};
}

TEST(WaitGraph, RanksThatWaitForEachOtherInTwoGroupsAreStuck) {
  const auto stuck = find_stuck(crossed());
  ASSERT_THAT(ranks_of(stuck), ElementsAre(0, 1));
  EXPECT_THAT(stuck[0].waits.front().waits_for, ElementsAre(1));
  EXPECT_THAT(stuck[1].waits.front().waits_for, ElementsAre(0));
}

TEST(WaitGraph, ARankWhoseCallerDoesNotWaitMayStillCome) {
  auto statuses = crossed();
  statuses[1].waits.clear();
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
  statuses.pop_back();
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
}

TEST(WaitGraph, ARankThatHasEnteredIsNotWaitedFor) {
  auto statuses = crossed();
  statuses[1].num_entered[0] = 4;
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
}

TEST(WaitGraph, WhoeverWaitsForStuckRanksIsStuck) {
  auto statuses = crossed();
  statuses[1].num_entered[2] = 0;
  statuses.push_back({.rank = 2,
                      .waits = {in_collective(2, 0)},
                      .num_entered = {{2, 1}, {3, 4}}});
  statuses.push_back(
      {.rank = 3, .waits = {in_collective(3, 4)}, .num_entered = {{3, 5}}});
  EXPECT_THAT(stuck_ranks(statuses), ElementsAre(0, 1, 2, 3));
  statuses[0].waits.clear();
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
}

TEST(WaitGraph, ALateRankHoldsUpButDoesNotTrap) {
  // All wait for rank 0, which evaluates.
  std::vector<RankStatus> statuses{{.rank = 0, .num_entered = {{0, 5}}}};
  for (int rank = 1; rank < 5; ++rank) {
    statuses.push_back({.rank = rank,
                        .waits = {in_collective(0, 5)},
                        .num_entered = {{0, 6}}});
  }
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
}

TEST(WaitGraph, OneCallerThatMayGoOnFreesItsRank) {
  auto statuses = crossed();
  statuses[1].waits.push_back(in_collective(2, 0));
  statuses[1].num_entered[2] = 1;
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
  statuses[0].num_entered[2] = 0;
  EXPECT_THAT(stuck_ranks(statuses), ElementsAre(0, 1));
}

TEST(WaitGraph, WaitsOutsideOfCollectivesCount) {
  auto statuses = crossed();
  statuses[0].waits = {for_peer(1)};
  EXPECT_THAT(stuck_ranks(statuses), ElementsAre(0, 1));
  statuses[0].waits = {for_peer(7)};
  EXPECT_THAT(stuck_ranks(statuses), IsEmpty());
}

// The largest set in which every rank waits, with each of its callers, for a
// member of it: all sets are tried.
std::vector<int> stuck_by_definition(const std::vector<RankStatus>& statuses) {
  const auto waits_for = [&](const RankWait& wait, const RankStatus& other) {
    if (wait.peer >= 0) return wait.peer == other.rank;
    const auto count = other.num_entered.find(wait.group);
    return count != other.num_entered.end() && count->second <= wait.sequence;
  };
  std::vector<int> largest;
  for (unsigned set = 0; set < 1U << statuses.size(); ++set) {
    std::vector<int> ranks;
    bool is_stuck = true;
    for (std::size_t i = 0; i < statuses.size(); ++i) {
      if ((set >> i & 1U) == 0) continue;
      ranks.push_back(statuses[i].rank);
      is_stuck = is_stuck && !statuses[i].waits.empty();
      for (const RankWait& wait : statuses[i].waits) {
        bool is_held = false;
        for (std::size_t j = 0; j < statuses.size(); ++j) {
          is_held =
              is_held || ((set >> j & 1U) != 0 && waits_for(wait, statuses[j]));
        }
        is_stuck = is_stuck && is_held;
      }
    }
    if (is_stuck && ranks.size() > largest.size()) largest = ranks;
  }
  return largest;
}

// Every state of three ranks with three groups, in which each rank has entered
// one or two collectives of each of its groups.
TEST(WaitGraph, AgreesWithTheDefinitionInEveryStateOfThreeRanks) {
  const std::vector<std::vector<int>> groups{{0, 1}, {1, 2}, {0, 1, 2}};
  std::vector<std::pair<int, int>> places;  // group and rank
  for (int group = 0; group < 3; ++group) {
    for (const int rank : groups[static_cast<std::size_t>(group)]) {
      places.emplace_back(group, rank);
    }
  }
  int num_states = 0;
  int num_with_stuck = 0;
  for (unsigned counts = 0; counts < 1U << places.size(); ++counts) {
    // For each rank: the group in which it waits, or 3.
    for (int waits = 0; waits < 4 * 4 * 4; ++waits) {
      std::vector<RankStatus> statuses(3);
      for (std::size_t i = 0; i < places.size(); ++i) {
        const auto [group, rank] = places[i];
        statuses[static_cast<std::size_t>(rank)].num_entered[group] =
            1 + (counts >> i & 1U);
      }
      bool is_possible = true;
      for (int rank = 0, rest = waits; rank < 3; ++rank, rest /= 4) {
        auto& status = statuses[static_cast<std::size_t>(rank)];
        status.rank = rank;
        if (rest % 4 == 3) continue;
        const auto entered = status.num_entered.find(rest % 4);
        is_possible = is_possible && entered != status.num_entered.end();
        if (!is_possible) break;
        status.waits.push_back(in_collective(rest % 4, entered->second - 1));
      }
      if (!is_possible) continue;
      const auto stuck = stuck_ranks(statuses);
      ASSERT_EQ(stuck, stuck_by_definition(statuses))
          << "counts " << counts << ", waits " << waits;
      ++num_states;
      num_with_stuck += stuck.empty() ? 0 : 1;
    }
  }
  EXPECT_EQ(num_states, 128 * 3 * 4 * 3);
  EXPECT_GT(num_with_stuck, 50);
}

TEST(WaitGraph, AgreesWithTheDefinitionOnRandomStatesWithSeveralCallers) {
  std::mt19937 random(7);
  const auto below = [&](int limit) {
    return static_cast<int>(random() % static_cast<unsigned>(limit));
  };
  int num_with_stuck = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<RankStatus> statuses(7);
    for (int rank = 0; rank < 7; ++rank) {
      auto& status = statuses[static_cast<std::size_t>(rank)];
      status.rank = rank * 3;
      for (int group = 0; group < 4; ++group) {
        if (below(3) > 0) {
          status.num_entered[group] = static_cast<std::uint64_t>(below(3));
        }
      }
      for (int callers = below(8) == 0 ? 0 : 1 + below(2); callers > 0;
           --callers) {
        status.waits.push_back(
            below(4) == 0 ? for_peer(below(7) * 3)
                          : in_collective(below(4), static_cast<std::uint64_t>(
                                                        below(3))));
      }
    }
    const auto stuck = stuck_ranks(statuses);
    ASSERT_EQ(stuck, stuck_by_definition(statuses)) << "state " << i;
    if (stuck.empty()) continue;
    ++num_with_stuck;
    EXPECT_NE(describe(find_stuck(statuses)), "");
  }
  EXPECT_GT(num_with_stuck, 500);
  EXPECT_LT(num_with_stuck, 2900);
}

TEST(WaitGraph, TheTextSaysWhoWaitsWhereForWhom) {
  auto statuses = crossed();
  statuses[0].waits[0].label = "step 12, unshard h.1";
  statuses[0].waits[0].duration = std::chrono::milliseconds(4120);
  statuses[1].waits[0].duration = std::chrono::milliseconds(3000);
  statuses.push_back({.rank = 5, .waits = {for_peer(1)}, .num_entered = {}});
  const auto text = describe(find_stuck(statuses));
  EXPECT_EQ(
      text,
      "ranks wait for each other, so that none can go on:\n"
      "  rank 0 has waited 4.1 s in group 'a', barrier #3 (step 12, unshard "
      "h.1), which rank 1 has not entered\n"
      "  rank 1 has waited 3.0 s in group 'b', barrier #2, which rank 0 has "
      "not entered\n"
      "  rank 5 has waited 0.0 s in group 'a': rank 1 has not begun its update "
      "of w (version 3)\n"
      "All ranks must issue the same collectives in the same order; did one "
      "take another branch or skip a step?");
}

TEST(WaitGraph, OfManyRanksTheTextNamesACycleAndAFew) {
  // Ranks 1000 and 1001 wait for each other, all others for rank 1000.
  std::vector<RankStatus> statuses;
  for (int rank = 0; rank < 1000; ++rank) {
    statuses.push_back({.rank = rank,
                        .waits = {in_collective(0, 0)},
                        .num_entered = {{0, 1}}});
  }
  statuses.push_back({.rank = 1000,
                      .waits = {in_collective(1, 0)},
                      .num_entered = {{0, 0}, {1, 1}, {2, 0}}});
  statuses.push_back({.rank = 1001,
                      .waits = {in_collective(2, 0)},
                      .num_entered = {{1, 0}, {2, 1}}});
  const auto stuck = find_stuck(statuses);
  EXPECT_EQ(stuck.size(), 1002);
  const auto text = describe(stuck);
  EXPECT_THAT(
      text, AllOf(HasSubstr("go on:\n  rank 1000 has waited"),
                  HasSubstr("\n  rank 1001 has waited"),
                  HasSubstr("\n  rank 0 has waited"), HasSubstr("and 986 more"),
                  Not(HasSubstr("rank 999 has"))));
  EXPECT_LT(text.size(), 3000);
}

TEST(RankStatus, SurvivesItsText) {
  RankStatus status{.rank = 3, .beat = 9};
  status.waits = {in_collective(2, 7), for_peer(4)};
  status.waits[0].label = "step 12, \"h\" \xff";
  status.waits[0].duration = std::chrono::milliseconds(2500);
  status.num_entered = {{0, 5}, {11, 1ULL << 40}};
  const auto copy = rank_status_of(text_of(status));
  EXPECT_EQ(copy.rank, 3);
  EXPECT_EQ(copy.beat, 9U);
  EXPECT_EQ(copy.num_entered, status.num_entered);
  ASSERT_EQ(copy.waits.size(), 2U);
  EXPECT_EQ(copy.waits[0].id, 1U);
  EXPECT_EQ(copy.waits[0].group, 2);
  EXPECT_EQ(copy.waits[0].group_name, "c");
  EXPECT_EQ(copy.waits[0].sequence, 7U);
  EXPECT_EQ(copy.waits[0].peer, -1);
  EXPECT_EQ(copy.waits[0].what, "barrier #7");
  EXPECT_THAT(copy.waits[0].label, HasSubstr("step 12, \"h\" "));
  EXPECT_EQ(copy.waits[0].duration, std::chrono::milliseconds(2500));
  EXPECT_EQ(copy.waits[1].peer, 4);
}

}  // namespace
}  // namespace nfold
