// File: rank_lists_test.h
//
// What must hold of rank lists in every world; for the tests of layouts.
//
//   EXPECT_TRUE(is_partition(lists.data, /*world_size=*/8, /*size=*/4));
//   EXPECT_TRUE(share_at_most_one_rank(lists.data, lists.tensor, 8));
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nfold/errors.h"
#include "nfold/rank_lists.h"

namespace nfold {

// Every rank of the world is in exactly one list, and each has `size` ranks.
inline testing::AssertionResult is_partition(const RankLists& lists,
                                             int world_size, int size) {
  std::vector<int> times_seen(world_size, 0);
  for (const auto& list : lists) {
    if (static_cast<int>(list.size()) != size) {
      return testing::AssertionFailure()
             << "a list of " << list.size() << " ranks instead of " << size;
    }
    for (const int rank : list) {
      if (rank < 0 || rank >= world_size) {
        return testing::AssertionFailure() << "rank " << rank;
      }
      ++times_seen[rank];
    }
  }
  for (int rank = 0; rank < world_size; ++rank) {
    if (times_seen[rank] != 1) {
      return testing::AssertionFailure()
             << "rank " << rank << " is in " << times_seen[rank] << " lists";
    }
  }
  return testing::AssertionSuccess();
}

// For each rank of the world, the index of its list in a partition.
inline std::vector<std::size_t> list_indices(const RankLists& lists,
                                             int world_size) {
  std::vector<std::size_t> indices(world_size);
  for (std::size_t i = 0; i < lists.size(); ++i) {
    for (const int rank : lists[i]) indices[rank] = i;
  }
  return indices;
}

// Of two partitions: two ranks together in the one are apart in the other.
inline testing::AssertionResult share_at_most_one_rank(const RankLists& a,
                                                       const RankLists& b,
                                                       int world_size) {
  const auto in_a = list_indices(a, world_size);
  const auto in_b = list_indices(b, world_size);
  std::set<std::pair<std::size_t, std::size_t>> seen;
  for (int rank = 0; rank < world_size; ++rank) {
    if (!seen.emplace(in_a[rank], in_b[rank]).second) {
      return testing::AssertionFailure()
             << "rank " << rank << " meets another rank in both";
    }
  }
  return testing::AssertionSuccess();
}

inline std::vector<int> divisors(int number) {
  std::vector<int> found;
  for (int i = 1; i <= number; ++i) {
    if (number % i == 0) found.push_back(i);
  }
  return found;
}

// EXPECT_THAT([] { ... }, raises_value_error("8 is not divisible by 3"))
inline auto raises_value_error(const std::string& text) {
  return testing::ThrowsMessage<c10::ValueError>(testing::HasSubstr(text));
}

}  // namespace nfold
