// Units that rest in memory which the ranks of their group share.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nfold/collectives.h"
#include "param/sharded_unit.h"
#include "param/sharded_unit_test.h"
#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

constexpr ThreadWorldOptions kThroughMemory{.transport = Transport::kShm};

class SharedUnit : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, SharedUnit, ::testing::Values(2, 3, 4));

TEST_P(SharedUnit, ARankGathersAloneAndTakesNoMemory) {
  run_ranks(
      GetParam(),
      [](World& world) {
        auto params = odd_params();
        std::vector<at::Tensor> values;
        for (const auto& param : params) {
          values.push_back(param.tensor().detach().clone());
        }
        ShardedUnit unit(params, released_options(world));
        if (world.rank() == 1) {
          for (int time = 0; time < 5; ++time) {
            gather_now({&unit});
            EXPECT_EQ(unit.full_bytes(), 0);
            for (std::size_t i = 0; i < values.size(); ++i) {
              EXPECT_TRUE(torch::equal(params[i].tensor().detach(), values[i]));
            }
            unit.release();
          }
        }
        barrier(world.group()).wait();
        EXPECT_EQ(
            world.group()
                .counts()[static_cast<std::size_t>(Collective::kAllGather)]
                .calls,
            2)
            << "of making the array";
      },
      kThroughMemory);
}

TEST_P(SharedUnit, UpdatesOfAllRanksAreSeenByAll) {
  run_ranks(
      GetParam(),
      [](World& world) {
        auto params = odd_params();
        ShardedUnit unit(params, released_options(world, at::kBFloat16));
        for (int step = 1; step <= 20; ++step) {
          if ((step + world.rank()) % 3 == 0) gather_now({&unit});
          unit.begin_update();
          EXPECT_EQ(unit.state(), UnitState::kSharded);
          unit.owned().fill_(step * 4 + world.rank());
          unit.publish_shard();
          gather_now({&unit});
          for (int rank = 0; rank < world.size(); ++rank) {
            const auto range = shard_range(unit.layout(), rank);
            EXPECT_TRUE(unit.full()
                            .narrow(0, range.begin, range.numel)
                            .eq(step * 4 + rank)
                            .all()
                            .item<bool>())
                << "step " << step << " rank " << rank;
          }
          unit.release();
        }
      },
      kThroughMemory);
}

TEST_P(SharedUnit, WhatAnUnsharedUnitHoldsIsItsOwn) {
  run_ranks(
      GetParam(),
      [](World& world) {
        auto params = odd_params();
        const auto last = params.size() - 1;
        const auto before = params[last].tensor().detach().clone();
        ShardedUnit unit(params, released_options(world));
        gather_now({&unit});
        unit.unshare();
        params[last].tensor().detach().fill_(-world.rank() - 1);
        barrier(world.group()).wait();
        EXPECT_EQ(params[last].tensor().min().item<float>(), -world.rank() - 1);
        unit.release();
        gather_now({&unit});
        EXPECT_TRUE(torch::equal(params[last].tensor().detach(), before));

        // Equal on all ranks, as publish_full asks for.
        unit.unshare();
        params[last].tensor().detach().fill_(7);
        unit.publish_full({last});
        EXPECT_EQ(unit.state(), UnitState::kUnsharded);
        unit.release();
        gather_now({&unit});
        EXPECT_EQ(params[last].tensor().min().item<float>(), 7);
        EXPECT_TRUE(torch::equal(params[3].tensor().detach(),
                                 odd_params()[3].tensor().detach()));
      },
      kThroughMemory);
}

TEST(SharedUnitErrors, APublicationNeedsItsUpdate) {
  run_ranks(
      2,
      [](World& world) {
        ShardedUnit unit(odd_params(), released_options(world));
        EXPECT_THAT(text_of<c10::Error>([&] { unit.publish_shard(); }),
                    HasSubstr("begin_update"));
      },
      kThroughMemory);
}

TEST(SharedUnitErrors, ParametersOutliveTheUnit) {
  run_ranks(
      2,
      [](World& world) {
        auto params = odd_params();
        const auto before = params[5].tensor().detach().clone();
        {
          ShardedUnit unit(params, released_options(world));
          gather_now({&unit});
        }
        EXPECT_TRUE(torch::equal(params[5].tensor().detach(), before));
      },
      kThroughMemory);
}

}  // namespace
}  // namespace nfold
