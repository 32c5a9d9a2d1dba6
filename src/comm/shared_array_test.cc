#include "comm/shared_array.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <latch>
#include <thread>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class SharedArrays : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, SharedArrays, ::testing::Values(2, 3, 4));

// Each rank's part is full of version * 10 + rank; readers check all parts
// and never see two versions in one read, or one that is not theirs.
TEST_P(SharedArrays, ReadersSeeTheVersionOfTheirStep) {
  constexpr std::size_t kPart = 4096;
  constexpr int kSteps = 200;
  run_ranks(GetParam(), [&](World& world) {
    const auto size = static_cast<std::size_t>(world.size());
    const auto array =
        SharedArray::make(world.group(), size * kPart, "the array");
    ASSERT_NE(array, nullptr);
    std::byte* own =
        array->data() + static_cast<std::size_t>(world.rank()) * kPart;
    for (int step = 0; step < kSteps; ++step) {
      if (step > 0) array->begin_update();
      std::memset(own, (step * 10 + world.rank()) % 251, kPart);
      array->publish();
      // Ranks read as often as they like, without a partner.
      for (int read = 0; read < (step + world.rank()) % 3; ++read) {
        array->await_versions();
        for (std::size_t rank = 0; rank < size; ++rank) {
          const auto expected = static_cast<std::byte>(
              (step * 10 + static_cast<int>(rank)) % 251);
          const std::byte* part = array->data() + rank * kPart;
          for (std::size_t i = 0; i < kPart; i += 511) {
            ASSERT_EQ(part[i], expected) << "step " << step << " rank " << rank;
          }
        }
        EXPECT_TRUE(array->is_current());
      }
    }
  });
}

TEST(SharedArray, IsNullWhereNoMemoryIsShared) {
  run_ranks(2,
            [](World& world) {
              EXPECT_EQ(SharedArray::make(world.group(), 100, "it"), nullptr);
              EXPECT_STREQ(world.group().transport(), "gloo");
            },
            {.transport = Transport::kGloo});
}

TEST(SharedArray, TooLargeIsAnErrorOnAllRanks) {
  const auto total = shared_space().total_bytes;
  if (total == 0) GTEST_SKIP() << "/dev/shm has no limit here";
  run_ranks(3, [&](World& world) {
    EXPECT_THAT(text_of<c10::Error>([&] {
                  SharedArray::make(world.group(),
                                    static_cast<std::size_t>(total) * 2, "big");
                }),
                AllOf(HasSubstr("[rank 0] big"), HasSubstr("/dev/shm")));
    barrier(world.group()).wait();
  });
}

TEST(SharedArray, RankThatLeavesIsNamed) {
  run_ranks(2, [&](World& world) {
    const auto array = SharedArray::make(world.group(), 100, "unit layer 3");
    array->publish();
    if (world.rank() == 1) return;
    EXPECT_THAT(text_of<c10::Error>([&] { array->begin_update(); }),
                AllOf(HasSubstr("[rank 0] unit layer 3"), HasSubstr("rank 1")));
  });
}

TEST(SharedArray, RankThatDoesNotComeIsNamedAfterTheTimeout) {
  std::latch has_failed(1);
  run_ranks(2,
            [&](World& world) {
              const auto array =
                  SharedArray::make(world.group(), 100, "unit layer 3");
              if (world.rank() == 1) {
                has_failed.wait();
                return;
              }
              array->publish();
              EXPECT_THAT(
                  text_of<c10::Error>([&] { array->await_versions(); }),
                  AllOf(HasSubstr("rank 1 has not published its part of unit "
                                  "layer 3 (version 1) within 0.5 s")));
              has_failed.count_down();
            },
            {.timeout = std::chrono::milliseconds(500)});
}

}  // namespace
}  // namespace nfold
