#include "param/sharded_unit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "param/sharded_unit_test.h"
#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

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
      ShardedUnit unit(params, options_of(world));
      unit.owned().fill_(static_cast<float>(world.rank() + 1));
      unit.publish_shard();
      ShardedUnit::begin_gather({&unit});
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
    ShardedUnit unit(odd_params(), options_of(world));
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);
    unit.finish_gather();  // no-op
    ShardedUnit::begin_gather({&unit});
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);  // no-op
    unit.publish_shard();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    EXPECT_EQ(unit.version(), 1);
    EXPECT_THROW(unit.finish_gather(), c10::Error);
    ShardedUnit::begin_gather({&unit});
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

// 0 and -0 differ, and so would residue that is not zero.
bool has_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto bytes = [](const at::Tensor& tensor) {
    return tensor.detach().contiguous().view({-1}).view(at::kByte);
  };
  return a.sizes() == b.sizes() && torch::equal(bytes(a), bytes(b));
}

std::vector<at::Tensor> values_of_params(
    const std::vector<ParamState>& params) {
  std::vector<at::Tensor> values;
  for (const auto& param : params) {
    values.push_back(param.tensor().detach().clone());
  }
  return values;
}

TEST(ReleasedUnitTest, StartsShardedAndHoldsItsShardOnly) {
  for (const int num_shards : {1, 2, 3, 4}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      auto params = odd_params();
      ShardedUnit unit(params,
                       released_options(options_of(0, num_shards), dtype));
      const auto item_bytes =
          static_cast<std::int64_t>(c10::elementSize(dtype));
      EXPECT_EQ(unit.state(), UnitState::kSharded);
      EXPECT_EQ(unit.params_bytes(), unit.layout().shard_numel * item_bytes);
      EXPECT_EQ(unit.full_bytes(), unit.layout().numel() * item_bytes);
      EXPECT_EQ(unit.master_bytes(),
                dtype == at::kFloat ? 0 : unit.layout().shard_numel * 4);
      for (const auto& param : params) {
        EXPECT_EQ(param.tensor().scalar_type(), dtype);
        EXPECT_TRUE(param.tensor().is_leaf() && param.tensor().requires_grad());
        EXPECT_THROW(param.tensor().const_data_ptr(), c10::Error);
      }
      EXPECT_EQ(params.back().tensor().sizes(), at::IntArrayRef({1023}));
    }
  }
}

TEST(ReleasedUnitTest, GatheringGivesTheValuesThatTheModuleHad) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [](World& world) {
      for (const auto mode : {GatherMode::kAllGather, GatherMode::kAllReduce}) {
        for (const auto dtype :
             {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
          auto params = odd_params();
          const auto values = values_of_params(params);
          ShardedUnit resident(odd_params(), [&] {
            auto options = options_of(world);
            options.dtype = dtype;
            return options;
          }());
          ShardedUnit unit(params, released_options(world, dtype));
          gather_now({&unit}, mode);
          EXPECT_EQ(unit.state(), UnitState::kUnsharded);
          EXPECT_TRUE(has_bits(unit.full(), resident.full()));
          for (std::size_t i = 0; i < params.size(); ++i) {
            const auto& tensor = params[i].tensor();
            EXPECT_TRUE(has_bits(tensor, values[i].to(dtype)));
            if (tensor.numel() == 0) continue;
            EXPECT_EQ(
                reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) %
                    kAlignmentBytes,
                0);
          }
          unit.release();
        }
      }
    });
  }
}

TEST(ReleasedUnitTest, TransitionsFollowTheTable) {
  run_ranks_over_gloo(2, [](World& world) {
    ShardedUnit unit(odd_params(), released_options(world));
    const auto raises = [&](const std::function<void()>& operation) {
      EXPECT_THROW(operation(), c10::Error);
    };
    // Sharded.
    raises([&] { unit.finish_gather(); });
    raises([&] { unit.publish_full({0}); });
    unit.release();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    unit.publish_shard();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    EXPECT_EQ(unit.version(), 1);
    // Gathering.
    ShardedUnit::begin_gather({&unit});
    EXPECT_EQ(unit.state(), UnitState::kGathering);
    raises([&] { unit.publish_shard(); });
    raises([&] { unit.publish_full({0}); });
    raises([&] { unit.release(); });
    ShardedUnit::begin_gather({&unit});
    EXPECT_EQ(unit.state(), UnitState::kGathering);
    // Unsharded.
    unit.finish_gather();
    unit.finish_gather();
    ShardedUnit::begin_gather({&unit});
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);
    unit.publish_full({0});
    EXPECT_EQ(unit.state(), UnitState::kUnsharded);
    EXPECT_EQ(unit.version(), 2);
    unit.release();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    gather_now({&unit});
    unit.publish_shard();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    EXPECT_EQ(unit.version(), 3);
    EXPECT_THROW(unit.full().const_data_ptr(), c10::Error);
  });
}

TEST(ReleasedUnitTest, ComingAndGoingDisturbsNeitherViewsNorVersions) {
  run_ranks(3, [](World& world) {
    auto params = odd_params();
    const auto weight = params.back().tensor();
    ShardedUnit unit(params, released_options(world));
    const auto view = weight.detach().narrow(0, 10, 20);
    const auto version = weight._version();
    for (int round = 0; round < 3; ++round) {
      gather_now({&unit});
      EXPECT_TRUE(torch::equal(
          view, odd_params().back().tensor().detach().narrow(0, 10, 20)));
      unit.release();
      EXPECT_THROW(view.const_data_ptr(), c10::Error);
    }
    EXPECT_EQ(weight._version(), version);
    EXPECT_EQ(unit.version(), 0);
  });
}

TEST(ReleasedUnitTest, AGatherThatFailsRaisesAndLeavesTheUnitGathering) {
  run_ranks_over_gloo(2, [](World& world) {
    ShardedUnit unit({make_param("p", torch::ones({64 + 64 * world.rank()}))},
                     released_options(world));
    ShardedUnit::begin_gather({&unit});
    for (int i = 0; i < 2; ++i) {
      EXPECT_THROW(unit.finish_gather(), c10::DistBackendError);
      EXPECT_EQ(unit.state(), UnitState::kGathering);
    }
  });
}

TEST(ReleasedUnitTest, GatheringAfterPublishShardGivesTheNewValues) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [](World& world) {
      for (const auto mode : {GatherMode::kAllGather, GatherMode::kAllReduce}) {
        auto params = odd_params();
        ShardedUnit unit(params, released_options(world));
        gather_now({&unit}, mode);
        unit.begin_update();
        unit.owned().fill_(static_cast<float>(world.rank() + 1));
        unit.publish_shard();
        for (const auto& param : params) {
          EXPECT_EQ(param.tensor()._version(), 1);
        }
        gather_now({&unit}, mode);
        for (int rank = 0; rank < world.size(); ++rank) {
          const auto range = shard_range(unit.layout(), rank);
          EXPECT_TRUE(unit.full()
                          .narrow(0, range.begin, range.numel)
                          .eq(rank + 1)
                          .all()
                          .item<bool>());
        }
        unit.release();
      }
    });
  }
}

TEST(ReleasedUnitTest, PublishFullTakesOverTheNamedParametersOnly) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks_over_gloo(num_ranks, [](World& world) {
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        auto params = odd_params();
        ShardedUnit unit(params, released_options(world, dtype));
        gather_now({&unit});
        const auto before = values_of_params(params);
        unit.full().fill_(-3);
        const std::vector<std::size_t> changed{1, 5};
        unit.publish_full(changed);
        EXPECT_EQ(unit.state(), UnitState::kUnsharded);
        EXPECT_EQ(params[0].tensor()._version(), 1);
        unit.release();
        gather_now({&unit});
        for (std::size_t i = 0; i < params.size(); ++i) {
          const bool is_changed = i == 1 || i == 5;
          EXPECT_TRUE(has_bits(
              params[i].tensor(),
              is_changed ? torch::full_like(before[i], -3) : before[i]));
        }
        EXPECT_TRUE(has_bits(unit.owned(), unit.master().to(dtype)));
        unit.release();
      }
    });
  }
}

TEST(ReleasedUnitTest, MasterKeepsWhatLowPrecisionRounds) {
  run_ranks(2, [](World& world) {
    constexpr float kFine = 1.0009765625f;  // 1 in bfloat16
    const auto fine = torch::full({64}, kFine);
    ShardedUnit unit({make_param("fine", fine)},
                     released_options(world, at::kBFloat16));
    EXPECT_TRUE(unit.master().eq(kFine).all().item<bool>());
    EXPECT_TRUE(unit.low_precision_owned().eq(1).all().item<bool>());
    gather_now({&unit});
    EXPECT_TRUE(fine.detach().eq(1).all().item<bool>());
    // Other values are rounded once, these stay.
    unit.publish_full({});
    EXPECT_TRUE(unit.master().eq(kFine).all().item<bool>());
    unit.release();
  });
}

TEST(ReleasedUnitTest, InTheMastersDtypeTheMasterIsTheShard) {
  ShardedUnit unit(odd_params(), released_options(options_of(1, 2)));
  EXPECT_TRUE(unit.master().is_same(unit.owned()));
  EXPECT_EQ(unit.master().numel(), unit.layout().shard_numel);
  EXPECT_FALSE(unit.low_precision_owned().defined());
}

TEST(ReleasedUnitTest, UnitsOfOneDtypeAreGatheredInOneCollective) {
  run_ranks_over_gloo(3, [](World& world) {
    const auto options = [&](at::ScalarType dtype) {
      return released_options(world, dtype);
    };
    std::vector<std::vector<ParamState>> params;
    for (int i = 0; i < 5; ++i) params.push_back(odd_params());
    ShardedUnit a(params[0], options(at::kFloat));
    ShardedUnit b(params[1], options(at::kBFloat16));
    ShardedUnit c(params[2], options(at::kFloat));
    ShardedUnit d(params[3], options(at::kBFloat16));
    const auto num_calls = [&](Collective kind) {
      return world.group().counts()[static_cast<std::size_t>(kind)].calls;
    };
    gather_now({&a, &b, &c, &d});
    EXPECT_EQ(num_calls(Collective::kAllGather), 2);
    // What is whole already takes no part.
    b.release();
    gather_now({&a, &b, &c});
    EXPECT_EQ(num_calls(Collective::kAllGather), 3);
    for (const auto& each : params) {
      const auto& tensor = each[5].tensor();
      EXPECT_TRUE(
          at::equal(tensor, odd_params()[5].tensor().to(tensor.scalar_type())));
      if (&each == &params[3]) break;
    }
    ShardedUnit e(params[4], options(at::kFloat));
    a.release();
    gather_now({&a, &e}, GatherMode::kAllReduce);
    EXPECT_EQ(num_calls(Collective::kAllReduce), 2);
    EXPECT_TRUE(has_bits(a.full(), e.full()));
  });
}

TEST(ReleasedUnitTest, FrozenAndIntegerUnitsHaveAShardAndNothingElse) {
  run_ranks(2, [](World& world) {
    const auto table = torch::arange(100);
    auto options = released_options(world, at::kLong);
    options.is_trained = false;
    ShardedUnit unit({{"table", {"table"}, {table}}}, options);
    EXPECT_FALSE(unit.master().defined());
    EXPECT_EQ(unit.master_bytes(), 0);
    gather_now({&unit});
    EXPECT_TRUE(torch::equal(table, torch::arange(100)));
    unit.release();
    EXPECT_THROW(table.const_data_ptr(), c10::Error);
  });
}

TEST(ReleasedUnitTest, AUnitWithoutElementsComesAndGoes) {
  run_ranks(2, [](World& world) {
    const auto empty = torch::empty({0, 3});
    ShardedUnit unit({make_param("empty", empty)}, released_options(world));
    EXPECT_EQ(unit.params_bytes(), 0);
    EXPECT_EQ(unit.full_bytes(), 0);
    for (const auto mode : {GatherMode::kAllGather, GatherMode::kAllReduce}) {
      gather_now({&unit}, mode);
      EXPECT_EQ(empty.sum().item<float>(), 0);
      unit.release();
    }
    EXPECT_EQ(unit.state(), UnitState::kSharded);
  });
}

TEST(ReleasedUnitTest, TiedTensorsStayTied) {
  run_ranks(2, [](World& world) {
    const auto weight = torch::arange(8, at::kFloat);
    ParamState param{"a", {"a", "b"}, {weight, weight.detach()}};
    ShardedUnit unit({param}, released_options(world));
    gather_now({&unit});
    param.tensors[0].mutable_data_ptr<float>()[3] = 42;
    EXPECT_EQ(param.tensors[1][3].item<float>(), 42);
  });
}

TEST(ReleasedUnitTest, RawAccessNamesTheFirstParameters) {
  auto params = odd_params();
  const auto text_at = [](const at::Tensor& tensor) {
    return text_of<c10::Error>([&] { tensor.const_data_ptr(); });
  };
  {
    ShardedUnit unit(params, released_options(options_of(0, 2)));
    EXPECT_THAT(text_at(params[5].tensor()),
                AllOf(HasSubstr("GatheredParameters"),
                      HasSubstr("p0, p1, p2, p7, ...")));
  }
  const auto weight = torch::ones({4});
  ShardedUnit unit({make_param("head.weight", weight)},
                   released_options(options_of(0, 2)));
  EXPECT_THAT(text_at(weight), EndsWith("One of: head.weight"));
}

TEST(ReleasedUnitTest, OwningEverythingNeedsTheFullStorage) {
  auto options = released_options(options_of(0, 2));
  options.owns_whole_range = true;
  EXPECT_THROW(ShardedUnit(odd_params(), options), c10::Error);
}

}  // namespace
}  // namespace nfold
