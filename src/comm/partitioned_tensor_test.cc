#include "nfold/partitioned_tensor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

at::Tensor counting(std::int64_t rows, std::int64_t columns) {
  return at::arange(rows * columns, at::kFloat).view({rows, columns});
}

std::vector<std::int64_t> numbers_of(const at::Tensor& meta) {
  return {meta.const_data_ptr<std::int64_t>(),
          meta.const_data_ptr<std::int64_t>() + meta.numel()};
}

TEST(PartitionedTensor, KeepsADetachedCopyOfItsPart) {
  run_ranks(4, [](World& world) {
    const auto whole = counting(3, 5).requires_grad_();
    const PartitionedTensor parts(whole, world.group());
    const std::int64_t numel = world.rank() == 3 ? 3 : 4;
    EXPECT_THAT(parts.local_size(), ElementsAre(numel));
    EXPECT_THAT(parts.full_size(), ElementsAre(3, 5));
    EXPECT_FALSE(parts.is_even_split());
    EXPECT_FALSE(parts.data().requires_grad());
    EXPECT_TRUE(at::equal(parts.data(), whole.detach().view({-1}).narrow(
                                            0, world.rank() * 4, numel)));
    whole.detach().zero_();
    EXPECT_EQ(parts.data()[1].item<float>(), world.rank() * 4 + 1);
  });
}

TEST(PartitionedTensor, MetaIsShapePartsRankAndBounds) {
  run_ranks(1, [](World& world) {
    const auto meta =
        PartitionedTensor(counting(2, 3), world.group()).to_meta();
    EXPECT_EQ(meta.scalar_type(), at::kLong);
    EXPECT_THAT(numbers_of(meta), ElementsAre(2, 2, 3, 1, 0, 0, 6));
  });
  run_ranks(4, [](World& world) {
    EXPECT_THAT(
        numbers_of(PartitionedTensor(counting(3, 5), world.group()).to_meta()),
        ElementsAre(2, 3, 5, 4, world.rank(), 0, 4, 8, 12, 15));
  });
}

TEST(PartitionedTensor, RoundTripThroughMetaGivesTheSameBits) {
  const auto whole = at::randn({28, 3});
  const auto uneven = at::randn({15, 5});
  run_ranks(4, [&](World& world) {
    for (const auto& tensor : {whole, uneven}) {
      const PartitionedTensor sent(tensor, world.group());
      const auto received = PartitionedTensor::from_meta(
          sent.to_meta(), sent.data().clone(), world.group());
      EXPECT_TRUE(at::equal(received.full(), tensor));
      EXPECT_EQ(received.is_even_split(), sent.is_even_split());
      EXPECT_TRUE(at::equal(received.to_meta(), sent.to_meta()));
    }
  });
}

TEST(PartitionedTensor, EvenPartsTravelInOneAllGatherOthersInBroadcasts) {
  run_ranks(4, [](World& world) {
    const auto calls = [&](Collective collective) {
      return world.group().counts()[static_cast<std::size_t>(collective)].calls;
    };
    const PartitionedTensor even(counting(16, 3), world.group());
    EXPECT_TRUE(even.is_even_split());
    EXPECT_TRUE(at::equal(even.full(), counting(16, 3)));
    EXPECT_EQ(calls(Collective::kAllGather), 1);
    EXPECT_EQ(calls(Collective::kBroadcast), 0);
    const PartitionedTensor uneven(counting(15, 5), world.group());
    EXPECT_TRUE(at::equal(uneven.full(), counting(15, 5)));
    EXPECT_EQ(calls(Collective::kAllGather), 1);
    EXPECT_EQ(calls(Collective::kBroadcast), 4);
    EXPECT_FALSE(uneven.full().requires_grad());
    EXPECT_TRUE(even.full().is_cpu());
    EXPECT_TRUE(even.full(at::kMeta).is_meta());
  });
}

// The source of a broadcast is a rank of the group, not of the world.
TEST(PartitionedTensor, UnevenPartsOfRanksThatDoNotBeginAtZero) {
  run_ranks(4, [](World& world) {
    const auto group = world.new_group("last_two", {2, 3});
    if (group == nullptr) return;
    const PartitionedTensor parts(counting(5, 3), *group);
    EXPECT_THAT(parts.local_size(), ElementsAre(world.rank() == 2 ? 8 : 7));
    EXPECT_TRUE(at::equal(parts.full(), counting(5, 3)));
  });
}

TEST(PartitionedTensor, AnySizeInAnyWorld) {
  for (const int num_ranks : {3, 5, 6}) {
    run_ranks(num_ranks, [&](World& world) {
      for (const std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
        const auto whole = at::arange(numel, at::kFloat);
        const PartitionedTensor parts(whole, world.group());
        const auto fewest = numel / num_ranks;
        EXPECT_EQ(parts.data().numel(),
                  fewest + (world.rank() < numel % num_ranks ? 1 : 0));
        EXPECT_TRUE(at::equal(parts.full(), whole)) << numel;
      }
    });
  }
}

TEST(PartitionedTensor, MetaOfAnotherRankOrGroupIsAnError) {
  run_ranks(2, [](World& world) {
    Group& group = world.group();
    const PartitionedTensor parts(counting(2, 2), group);
    const auto meta = parts.to_meta();
    const auto raised = [&](const at::Tensor& given, const at::Tensor& local) {
      return text_of<c10::ValueError>(
          [&] { PartitionedTensor::from_meta(given, local, group); });
    };
    const auto changed = [&](int index, std::int64_t value) {
      auto copy = meta.clone();
      copy[index] = value;
      return copy;
    };
    EXPECT_THAT(raised(meta.to(at::kInt), parts.data()),
                HasSubstr("a vector of int64"));
    EXPECT_THAT(raised(changed(3, 3), parts.data()),
                HasSubstr("expected number of parts 2"));
    EXPECT_THAT(raised(changed(4, 1 - world.rank()), parts.data()),
                HasSubstr(c10::str("expected rank ", world.rank())));
    EXPECT_THAT(raised(changed(7, 5), parts.data()), HasSubstr("from 0 to 4"));
    EXPECT_THAT(raised(meta.narrow(0, 0, 6), parts.data()),
                HasSubstr("more numbers"));
    EXPECT_THAT(raised(meta, at::zeros({3})), HasSubstr("expected 2 elements"));
  });
}

}  // namespace
}  // namespace nfold
