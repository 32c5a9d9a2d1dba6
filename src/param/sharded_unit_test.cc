#include "param/sharded_unit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "testing/thread_world.h"

namespace nfold {
namespace {

ParamState make_param(const std::string& name, at::Tensor tensor) {
  tensor.set_requires_grad(tensor.is_floating_point());
  return {name, {name}, {std::move(tensor)}};
}

ShardedUnitOptions options_of(int rank, int num_shards) {
  ShardedUnitOptions options;
  options.name = "unit";
  options.rank = rank;
  options.num_shards = num_shards;
  return options;
}

std::vector<ParamState> odd_params() {
  std::vector<ParamState> params;
  float next = 1;
  for (std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
    params.push_back(
        make_param("p" + std::to_string(numel), torch::arange(numel) + next));
    next += static_cast<float>(numel);
  }
  return params;
}

TEST(ShardedUnitTest, ParametersBecomeViewsOfOneStorageAndKeepTheirValues) {
  auto params = odd_params();
  std::vector<at::Tensor> before;
  for (const auto& param : params) {
    before.push_back(param.tensor().detach().clone());
  }
  ShardedUnit unit(params, options_of(0, 3));
  for (std::size_t i = 0; i < params.size(); ++i) {
    const auto& tensor = params[i].tensor();
    EXPECT_TRUE(torch::equal(tensor.detach(), before[i]));
    EXPECT_TRUE(tensor.is_leaf() && tensor.requires_grad());
    if (tensor.numel() == 0) continue;
    EXPECT_TRUE(tensor.is_alias_of(unit.full()));
    EXPECT_EQ(
        reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % kAlignmentBytes,
        0);
  }
}

TEST(ShardedUnitTest, TiedTensorsStayTied) {
  const auto weight = torch::rand({4, 2});
  ParamState param{"a", {"a", "b"}, {weight, weight.detach()}};
  ShardedUnit unit({param}, options_of(0, 2));
  param.tensors[0].mutable_data_ptr<float>()[3] = 42;
  EXPECT_EQ(param.tensors[1].flatten()[3].item<float>(), 42);
}

TEST(ShardedUnitTest, MasterKeepsWhatLowPrecisionRounds) {
  auto params = odd_params();
  params.push_back(make_param("fine", torch::full({5}, 1.0009765625f)));
  const auto fine = params.back().tensor();
  auto options = options_of(0, 1);
  options.dtype = at::kBFloat16;
  ShardedUnit unit(params, options);
  EXPECT_EQ(fine.scalar_type(), at::kBFloat16);
  const auto range = unit.layout().param_range(params.size() - 1);
  EXPECT_EQ(unit.master().dtype(), at::kFloat);
  EXPECT_EQ(unit.master()[range.begin].item<float>(), 1.0009765625f);
  EXPECT_TRUE(torch::equal(unit.low_precision_owned(),
                           unit.master().to(at::kBFloat16)));
}

TEST(ShardedUnitTest, InTheMastersDtypeTheMasterIsTheOwnedRange) {
  ShardedUnit unit(odd_params(), options_of(1, 2));
  EXPECT_TRUE(unit.master().is_alias_of(unit.full()));
  EXPECT_FALSE(unit.low_precision_owned().defined());
  EXPECT_EQ(unit.master_bytes(), 0);
}

TEST(ShardedUnitTest, FirstGradientCopiesLaterOnesAdd) {
  ShardedUnit unit(odd_params(), options_of(0, 1));
  const auto ones = torch::ones({unit.layout().numel()});
  unit.accumulate_grad(ones, 0.5f);
  EXPECT_EQ(unit.grad().sum().item<double>(), 0.5 * unit.layout().numel());
  unit.accumulate_grad(ones, 0.5f);
  EXPECT_EQ(unit.grad().sum().item<double>(), 1.0 * unit.layout().numel());
  unit.clear_grad();
  EXPECT_FALSE(unit.has_grad());
  unit.accumulate_grad(ones, 2.0f);
  EXPECT_EQ(unit.grad().sum().item<double>(), 2.0 * unit.layout().numel());
}

TEST(ShardedUnitTest, GatherAfterPublishGivesEveryRankEveryShard) {
  for (int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [](World& world) {
      auto params = odd_params();
      ShardedUnit unit(params, options_of(world.rank(), world.size()));
      unit.owned().fill_(static_cast<float>(world.rank() + 1));
      unit.publish_shard();
      ShardedUnit::begin_gather(world.group(), {&unit});
      unit.finish_gather();
      EXPECT_EQ(unit.state(), UnitState::kUnsharded);
      for (int rank = 0; rank < world.size(); ++rank) {
        const auto range = shard_range(unit.layout(), rank);
        EXPECT_TRUE(unit.full()
                        .narrow(0, range.begin, range.numel)
                        .eq(rank + 1)
                        .all()
                        .item<bool>());
      }
    });
  }
}

TEST(ShardedUnitTest, TransitionsFollowTheTable) {
  run_ranks(2, [](World& world) {
    ShardedUnit unit(odd_params(), options_of(world.rank(), world.size()));
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);
    unit.finish_gather();  // no-op
    ShardedUnit::begin_gather(world.group(), {&unit});
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);  // no-op
    unit.publish_shard();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    EXPECT_EQ(unit.version(), 1);
    EXPECT_THROW(unit.finish_gather(), c10::Error);
    ShardedUnit::begin_gather(world.group(), {&unit});
    EXPECT_EQ(unit.state(), UnitState::kGathering);
    EXPECT_THROW(unit.publish_shard(), c10::Error);
    EXPECT_THROW(unit.release(), c10::Error);
    unit.finish_gather();
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);
  });
}

TEST(ShardedUnitTest, PublishBumpsTheVersionsThatSavedGraphsCheck) {
  auto params = odd_params();
  ShardedUnit unit(params, options_of(0, 1));
  const auto weight = params.back().tensor();
  auto input = torch::ones({1023});
  input.set_requires_grad(true);
  const auto loss = (input * weight).sum();
  unit.publish_shard();
  EXPECT_THROW(loss.backward(), c10::Error);
}

}  // namespace
}  // namespace nfold
