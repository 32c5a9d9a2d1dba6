#include "nfold/dp_gather.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

// What it is to become, with only this rank's part there.
at::Tensor own_part_of(const at::Tensor& whole, const Group& group) {
  const auto flat = at::zeros_like(whole);
  const auto numel = whole.numel() / group.size();
  flat.narrow(0, group.rank() * numel, numel)
      .copy_(whole.narrow(0, group.rank() * numel, numel));
  return flat;
}

std::int64_t gathers_of(const Group& group) {
  return group.counts()[static_cast<std::size_t>(Collective::kAllGather)].calls;
}

TEST(AllGatherDpGroups, CompletesEachBufferInOneCollective) {
  run_ranks(3, [](World& world) {
    const auto pairs = world.new_group("first_two", {0, 1});
    std::vector<std::unique_ptr<Group>> alone;
    for (int rank = 0; rank < 3; ++rank) {
      alone.push_back(world.new_group(c10::str("alone", rank), {rank}));
    }
    const auto whole = at::arange(12, at::kFloat);
    const auto a = own_part_of(whole, world.group());
    const auto single = at::full({5}, 7.0F);
    std::vector<FlatGroup> groups{{a, &world.group()},
                                  {single, alone[world.rank()].get()}};
    at::Tensor b;
    if (pairs) {
      b = own_part_of(whole, *pairs);
      groups.push_back({b, pairs.get()});
    }
    all_gather_dp_groups(groups);
    EXPECT_TRUE(at::equal(a, whole));
    EXPECT_TRUE(at::equal(single, at::full({5}, 7.0F)));
    EXPECT_TRUE(!pairs || at::equal(b, whole));
    EXPECT_EQ(gathers_of(world.group()), 1);
    EXPECT_EQ(gathers_of(*alone[world.rank()]), 0);
  });
}

TEST(AllGatherDpGroups, BucketsGiveTheSameInSmallerCollectives) {
  run_ranks(2, [](World& world) {
    const auto whole = at::arange(202, at::kFloat);
    const auto flat = own_part_of(whole, world.group());
    all_gather_dp_groups({{flat, &world.group()}},
                         {.bucket_numel = 64, .start_alignment = 8});
    EXPECT_TRUE(at::equal(flat, whole));
    EXPECT_EQ(gathers_of(world.group()), 3);
  });
}

TEST(AllGatherDpGroups, ABufferThatDoesNotDivideIsNamed) {
  run_ranks(2, [](World& world) {
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  all_gather_dp_groups({{at::zeros({7}), &world.group()}});
                }),
                HasSubstr("a multiple of 2 elements"));
    EXPECT_THROW(all_gather_dp_groups({{at::zeros({8}), nullptr}}),
                 c10::ValueError);
  });
}

}  // namespace
}  // namespace nfold
