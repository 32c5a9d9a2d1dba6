#include "memory/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::int64_t kPage = 1 << 16;
constexpr std::uint64_t kBase = std::uint64_t{1} << 40;

BlockPool pool_of(std::int64_t num_pages) {
  BlockPool pool(kPage);
  pool.add_segment(kBase, num_pages * kPage);
  return pool;
}

TEST(BlockPoolTest, TakesFreshMemoryFirstAndTheSameAgainAfterwards) {
  auto pool = pool_of(10);
  const auto first = pool.take(3 * kPage);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->begin, kBase);
  EXPECT_FALSE(first->is_resident);
  EXPECT_TRUE(pool.give(first->begin));
  const auto second = pool.take(3 * kPage);
  EXPECT_EQ(second->begin, first->begin);
  EXPECT_TRUE(second->is_resident);
  EXPECT_EQ(pool.resident_bytes(), 3 * kPage);
}

TEST(BlockPoolTest, SizesAreRoundedToGranules) {
  auto pool = pool_of(1);
  EXPECT_TRUE(pool.take(0));
  EXPECT_EQ(pool.bytes_in_use(), BlockPool::kGranuleBytes);
  EXPECT_TRUE(pool.take(BlockPool::kGranuleBytes + 1));
  EXPECT_EQ(pool.bytes_in_use(), 3 * BlockPool::kGranuleBytes);
}

TEST(BlockPoolTest, WithoutRoomNothingChanges) {
  auto pool = pool_of(4);
  EXPECT_TRUE(pool.take(3 * kPage));
  EXPECT_FALSE(pool.take(2 * kPage));
  EXPECT_EQ(pool.bytes_in_use(), 3 * kPage);
  EXPECT_TRUE(pool.take(kPage));
  EXPECT_FALSE(BlockPool(kPage).take(1));
}

TEST(BlockPoolTest, TheSmallestBlockThatFitsIsTaken) {
  auto pool = pool_of(20);
  const auto large = pool.take(5 * kPage)->begin;
  pool.take(kPage);
  const auto small = pool.take(2 * kPage)->begin;
  pool.take(kPage);
  pool.give(large);
  pool.give(small);
  EXPECT_EQ(pool.take(kPage)->begin, small);
  EXPECT_EQ(pool.take(3 * kPage)->begin, large);
}

TEST(BlockPoolTest, FreeNeighboursBecomeOneBlock) {
  auto pool = pool_of(3);
  const auto a = pool.take(kPage)->begin;
  const auto b = pool.take(kPage)->begin;
  const auto c = pool.take(kPage)->begin;
  pool.give(a);
  pool.give(c);
  pool.give(b);
  const auto all = pool.take(3 * kPage);
  ASSERT_TRUE(all);
  EXPECT_TRUE(all->is_resident);
}

TEST(BlockPoolTest, SegmentsSideBySideStayApart) {
  auto pool = pool_of(1);
  pool.add_segment(kBase + kPage, kPage);
  const auto a = pool.take(kPage)->begin;
  const auto b = pool.take(kPage)->begin;
  pool.give(a);
  pool.give(b);
  EXPECT_FALSE(pool.take(2 * kPage));
}

TEST(BlockPoolTest, OnlyAddressesThatWereTakenCanBeGiven) {
  auto pool = pool_of(2);
  const auto begin = pool.take(kPage)->begin;
  EXPECT_FALSE(pool.give(begin + 1));
  EXPECT_FALSE(pool.give(kBase + kPage));
  EXPECT_TRUE(pool.give(begin));
  EXPECT_FALSE(pool.give(begin));
}

// 2 pages kept in two blocks, 2 in use, 4 at the peak: 3 fresh ones replace
// the kept.
TEST(BlockPoolTest, FreshMemoryBeyondThePeakReplacesWhatIsKept) {
  auto pool = pool_of(20);
  const auto a = pool.take(kPage)->begin;
  pool.take(kPage);
  const auto b = pool.take(kPage)->begin;
  pool.take(kPage);
  pool.give(b);
  pool.give(a);
  const auto taken = pool.take(3 * kPage);
  ASSERT_TRUE(taken);
  EXPECT_FALSE(taken->is_resident);
  EXPECT_EQ(pool.peak_bytes_in_use(), 5 * kPage);
  EXPECT_EQ(pool.resident_bytes(), 5 * kPage);
  EXPECT_THAT(taken->release,
              ElementsAre(AddressRange{b, kPage}, AddressRange{a, kPage}));
}

TEST(BlockPoolTest, NoMoreIsReleasedThanNeeded) {
  auto pool = pool_of(20);
  const auto large = pool.take(8 * kPage)->begin;
  pool.give(large);
  pool.take(7 * kPage);  // of the kept ones
  const auto taken = pool.take(2 * kPage);
  ASSERT_TRUE(taken);
  EXPECT_THAT(taken->release,
              ElementsAre(AddressRange{large + 7 * kPage, kPage}));
  EXPECT_EQ(pool.resident_bytes(), 9 * kPage);
}

TEST(BlockPoolTest, BelowThePeakNothingIsReleased) {
  auto pool = pool_of(40);
  const auto a = pool.take(6 * kPage)->begin;
  const auto b = pool.take(4 * kPage)->begin;
  pool.give(a);
  pool.give(b);  // 10 kept
  pool.take(6 * kPage);
  pool.take(3 * kPage);  // 1 kept
  EXPECT_EQ(pool.resident_bytes(), 10 * kPage);
  const auto taken = pool.take(kPage);
  EXPECT_TRUE(taken->is_resident);
  EXPECT_THAT(taken->release, IsEmpty());
}

TEST(BlockPoolTest, OnlyWholePagesAreReleased) {
  auto pool = pool_of(20);
  pool.take(kPage / 2);
  const auto begin = pool.take(2 * kPage)->begin;
  pool.take(kPage / 2);
  pool.give(begin);
  EXPECT_THAT(pool.release_all(),
              ElementsAre(AddressRange{kBase + kPage, kPage}));
  EXPECT_EQ(pool.resident_bytes(), pool.bytes_in_use());
  EXPECT_THAT(pool.release_all(), IsEmpty());
}

TEST(BlockPoolTest, ARepeatedStepTakesNothingFreshAfterTheFirst) {
  auto pool = pool_of(1000);
  std::mt19937 random(7);
  std::vector<std::int64_t> sizes;
  for (int i = 0; i < 40; ++i) {
    sizes.push_back(static_cast<std::int64_t>(random() % 9 + 1) * kPage / 2);
  }
  for (int step = 0; step < 3; ++step) {
    std::vector<std::uint64_t> held;
    for (const auto size : sizes) {
      const auto taken = pool.take(size);
      EXPECT_EQ(taken->is_resident, step > 0);
      held.push_back(taken->begin);
    }
    for (const auto begin : held) pool.give(begin);
  }
}

// A step whose last block is larger than the one that was freed for it, while
// a smaller one sits in the only place where it would fit. Segments keep blocks
// apart; `base` pages are in use besides. Returns the fresh pages of each step.
std::vector<std::int64_t> fresh_pages_of_steps(BlockPool& pool,
                                               std::int64_t base) {
  auto begin = kBase;
  for (const std::int64_t num_pages :
       {base, 10L, 10L, 10L, 11L, 11L, 11L, 11L, 11L}) {
    pool.add_segment(begin, num_pages * kPage);
    begin += static_cast<std::uint64_t>(num_pages * kPage);
  }
  std::vector<std::int64_t> fresh;
  const auto take = [&](std::int64_t num_pages) {
    const auto taken = pool.take(num_pages * kPage).value();
    if (!taken.is_resident && !fresh.empty()) fresh.back() += num_pages;
    return taken.begin;
  };
  take(base);
  for (int step = 0; step < 60; ++step) {
    fresh.push_back(0);
    std::vector<std::uint64_t> held{take(10), take(10), take(10)};
    pool.give(held[0]);
    held[0] = take(11);
    for (const auto block : held) pool.give(block);
  }
  return fresh;
}

TEST(BlockPoolTest, BytesReplacedInEveryStepSoonStay) {
  BlockPool pool(kPage);
  const auto fresh = fresh_pages_of_steps(pool, 100);
  EXPECT_EQ(fresh[4], 11) << "the bound comes first";
  EXPECT_EQ(fresh[10], 0);
  EXPECT_EQ(fresh.back(), 0);
  EXPECT_EQ(pool.peak_bytes_in_use(), 131 * kPage);
  EXPECT_EQ(pool.resident_bytes(), (131 + 11) * kPage);
}

TEST(BlockPoolTest, WhatIsMoreThanAnEighthIsReplacedForEver) {
  BlockPool pool(kPage);
  EXPECT_EQ(fresh_pages_of_steps(pool, 50).back(), 11);
  EXPECT_EQ(pool.resident_bytes(), pool.peak_bytes_in_use());
}

// Against a map of what is where: nothing overlaps, nothing is lost, and the
// budget holds, whatever the order.
TEST(BlockPoolTest, RandomUseKeepsEveryPromise) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    auto pool = pool_of(60);
    std::mt19937 random(seed);
    std::map<std::uint64_t, std::int64_t> held;
    std::int64_t in_use = 0;
    std::int64_t peak = 0;
    for (int i = 0; i < 2000; ++i) {
      if (random() % 2 == 0 || held.empty()) {
        const auto size = static_cast<std::int64_t>(random() % 12 + 1) * 4096;
        const auto taken = pool.take(size);
        if (!taken) continue;
        const auto end = taken->begin + static_cast<std::uint64_t>(size);
        EXPECT_GE(taken->begin, kBase);
        EXPECT_LE(end, kBase + 60 * kPage);
        for (const auto& [begin, bytes] : held) {
          EXPECT_TRUE(end <= begin ||
                      begin + static_cast<std::uint64_t>(bytes) <=
                          taken->begin);
        }
        for (const auto& range : taken->release) {
          for (const auto& [begin, bytes] : held) {
            EXPECT_TRUE(
                range.begin + static_cast<std::uint64_t>(range.num_bytes) <=
                    begin ||
                begin + static_cast<std::uint64_t>(bytes) <= range.begin);
          }
        }
        held[taken->begin] = size;
        in_use += size;
        peak = std::max(peak, in_use);
      } else {
        auto each = held.begin();
        std::advance(each, random() % held.size());
        EXPECT_TRUE(pool.give(each->first));
        in_use -= each->second;
        held.erase(each);
      }
      EXPECT_EQ(pool.bytes_in_use(), in_use);
      EXPECT_EQ(pool.peak_bytes_in_use(), peak);
      EXPECT_LE(pool.resident_bytes(), peak + peak / 8);
    }
    for (const auto& [begin, bytes] : held) pool.give(begin);
    pool.release_all();
    EXPECT_EQ(pool.resident_bytes(), 0);
    EXPECT_TRUE(pool.take(60 * kPage)) << "all is one block again";
  }
}

}  // namespace
}  // namespace nfold
