#include "comm/hierarchical_transport.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "nfold/collectives.h"
#include "nfold/world.h"
#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AnyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

struct Shape {
  int num_hosts = 2;
  int ranks_per_host = 2;

  int size() const { return num_hosts * ranks_per_host; }
};

// Calls body(world, the same ranks over messages alone) on every rank.
void on_hosts(const Shape& shape,
              const std::function<void(World&, Group&)>& body) {
  run_ranks(
      shape.size(),
      [&](World& world) {
        std::vector<int> all(static_cast<std::size_t>(world.size()));
        std::iota(all.begin(), all.end(), 0);
        auto plain = world.new_group("plain", all, Transport::kGloo);
        ASSERT_STREQ(world.group().transport(), "shm+gloo");
        ASSERT_STREQ(plain->transport(), "gloo");
        body(world, *plain);
      },
      {.transport = Transport::kAuto, .ranks_per_host = shape.ranks_per_host});
}

at::Tensor contribution(int rank, std::int64_t numel, at::ScalarType dtype) {
  auto values = (at::arange(numel, at::kDouble) * (rank + 1.37)).sin();
  if (at::isIntegralType(dtype, /*includeBool=*/false)) values = values * 30;
  return values.to(dtype);
}

class Hierarchical : public ::testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(Hosts, Hierarchical,
                         ::testing::Values(Shape{2, 2}, Shape{3, 2},
                                           Shape{2, 3}),
                         [](const auto& info) {
                           return std::to_string(info.param.num_hosts) + "of" +
                                  std::to_string(info.param.ranks_per_host);
                         });

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kDouble, at::kBFloat16,
                                      at::kHalf,  at::kLong,   at::kChar};
// Also more than a half-slot, and more than a message's chunk, of any dtype.
constexpr std::int64_t kNumels[] = {1, 5, 1023, 300001, 5000011};

TEST_P(Hierarchical, AllReduceGivesTheBitsOfMessages) {
  on_hosts(GetParam(), [](World& world, Group& plain) {
    for (const auto dtype : kDtypes) {
      for (const auto numel : kNumels) {
        for (const auto op : {ReduceOp::kSum, ReduceOp::kMax}) {
          auto sum = contribution(world.rank(), numel, dtype);
          auto expected = sum.clone();
          all_reduce(world.group(), sum, op).wait();
          all_reduce(plain, expected, op).wait();
          EXPECT_TRUE(at::equal(sum, expected)) << dtype << " " << numel;
        }
      }
    }
  });
}

TEST_P(Hierarchical, ReduceScatterGivesTheBitsOfMessages) {
  on_hosts(GetParam(), [](World& world, Group& plain) {
    for (const auto dtype : kDtypes) {
      for (const std::int64_t shard : {1, 1021, 700001}) {
        const auto numel = shard * world.size();
        auto shard_sum = at::empty({shard}, dtype);
        auto expected = at::empty({shard}, dtype);
        const auto input = contribution(world.rank(), numel, dtype);
        const auto before = input.clone();
        reduce_scatter(world.group(), shard_sum, input).wait();
        EXPECT_TRUE(at::equal(input, before));
        reduce_scatter(plain, expected,
                       contribution(world.rank(), numel, dtype))
            .wait();
        EXPECT_TRUE(at::equal(shard_sum, expected)) << dtype << " " << shard;
      }
    }
  });
}

TEST_P(Hierarchical, RanksThatAreEmptyCountAsZeros) {
  on_hosts(GetParam(), [](World& world, Group&) {
    const std::int64_t shard = 70001;
    for (int num_givers = 0; num_givers <= world.size(); ++num_givers) {
      std::vector<at::Tensor> inputs{at::ones({shard * world.size()}),
                                     at::ones({3 * world.size()})};
      auto apart = at::empty({shard});
      reduce_scatter_coalesced(world.group(), inputs,
                               world.rank() >= num_givers, {apart, {}})
          .wait();
      EXPECT_TRUE(at::equal(apart, at::full({shard}, num_givers)));
      EXPECT_TRUE(at::equal(inputs[1].narrow(0, 3 * world.rank(), 3),
                            at::full({3}, num_givers)));
    }
  });
}

TEST_P(Hierarchical, AllGatherPutsShardsInRankOrder) {
  on_hosts(GetParam(), [](World& world, Group&) {
    const std::vector<std::int64_t> shards{1, 77, 600011};
    std::vector<at::Tensor> outputs;
    for (const auto shard : shards) {
      outputs.push_back(at::zeros({shard * world.size()}));
      outputs.back()
          .narrow(0, shard * world.rank(), shard)
          .fill_(world.rank() + 1);
    }
    all_gather_coalesced(world.group(), outputs).wait();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const auto expected = at::arange(1, world.size() + 1, at::kFloat)
                                .repeat_interleave(shards[i]);
      EXPECT_TRUE(at::equal(outputs[i], expected)) << i;
    }
  });
}

TEST_P(Hierarchical, BroadcastFromEverySource) {
  on_hosts(GetParam(), [](World& world, Group&) {
    for (int source = 0; source < world.size(); ++source) {
      auto tensor = contribution(world.rank(), 200003, at::kFloat);
      broadcast(world.group(), tensor, source).wait();
      EXPECT_TRUE(at::equal(tensor, contribution(source, 200003, at::kFloat)));
    }
  });
}

TEST_P(Hierarchical, AllToAllAndBarrier) {
  on_hosts(GetParam(), [](World& world, Group& plain) {
    const std::int64_t numel = 4099 * world.size();
    const auto input = contribution(world.rank(), numel, at::kFloat);
    auto output = at::empty({numel});
    auto expected = at::empty({numel});
    all_to_all(world.group(), output, input).wait();
    barrier(world.group()).wait();
    all_to_all(plain, expected, input).wait();
    EXPECT_TRUE(at::equal(output, expected));
  });
}

// What a rank gives to others: to its host once for each of the hosts' parts,
// to its column once.
TEST_P(Hierarchical, CrossesHostsOnceForAHostNotOnceForARank) {
  const auto shape = GetParam();
  on_hosts(shape, [&](World& world, Group& plain) {
    const std::int64_t shard = 1000;
    auto full = at::ones({shard * world.size()});
    all_gather_coalesced(world.group(), {full}).wait();
    all_gather_coalesced(plain, {full}).wait();
    const auto bytes_of = [](const Group& group) {
      return group.counts()[static_cast<std::size_t>(Collective::kAllGather)]
          .bytes;
    };
    EXPECT_EQ(bytes_of(plain), 4 * shard * (world.size() - 1));
    const std::int64_t to_column = shape.num_hosts - 1;
    const std::int64_t inside =
        shape.num_hosts * (shape.ranks_per_host - std::int64_t{1});
    EXPECT_EQ(bytes_of(world.group()), 4 * shard * (to_column + inside));
  });
}

TEST(HierarchicalTransport, IsOnlyForRegularGroups) {
  run_ranks(4,
            [](World& world) {
              const std::vector<std::pair<std::vector<int>, std::string>> ways{
                  {{0, 1, 2}, "gloo"},
                  {{0, 2}, "gloo"},
                  {{0, 2, 1, 3}, "gloo"},
                  {{0, 1}, "shm"},
                  {{1, 0, 3, 2}, "shm+gloo"}};
              for (const auto& [ranks, way] : ways) {
                const auto group = world.new_group("g", ranks);
                if (!group) continue;
                EXPECT_EQ(group->transport(), way);
              }
            },
            {.transport = Transport::kAuto, .ranks_per_host = 2});
}

// Each pair of ranks in another collective, the time-out far away.
TEST(HierarchicalTransport, RanksThatDivergeFindOut) {
  for (int odd = 0; odd < 4; ++odd) {
    for (const bool is_flat : {false, true}) {
      const auto start = std::chrono::steady_clock::now();
      std::atomic<int> num_errors = 0;
      run_ranks(4,
                [&](World& world) {
                  auto a = at::ones({8});
                  auto b = at::ones({8});
                  const auto text = text_of<c10::DistBackendError>([&] {
                    if (world.rank() != odd) {
                      all_gather_coalesced(world.group(), {a}).wait();
                    } else if (is_flat) {
                      all_to_all(world.group(), a, b).wait();
                    } else {
                      reduce_scatter_coalesced(world.group(), {a}).wait();
                    }
                  });
                  EXPECT_THAT(text, AnyOf(HasSubstr("entered all_gather"),
                                          HasSubstr("lost the connection")));
                  if (!text.empty()) ++num_errors;
                },
                {.timeout = std::chrono::minutes(2),
                 .transport = Transport::kAuto,
                 .ranks_per_host = 2});
      EXPECT_EQ(num_errors, 4);
      EXPECT_LT(std::chrono::steady_clock::now() - start,
                std::chrono::seconds(10));
    }
  }
}

const ProcessBody kReduces("HierarchicalAllReduces", [] {
  const std::string rank = std::getenv("RANK");
  WorldOptions options;
  options.timeout = std::chrono::minutes(5);
  options.host = rank < "2" ? "alpha" : "beta";
  auto world = World::from_environment(options);
  barrier(world.group()).wait();
  std::printf("under way over %s\n", world.group().transport());
  std::fflush(stdout);
  auto full = at::zeros({std::int64_t{3} << 20});
  for (;;) all_reduce(world.group(), full).wait();
});

TEST(HierarchicalTransport, ADeathEndsAllRanksOfAllHosts) {
  ProcessWorld ranks("HierarchicalAllReduces", 4);
  for (int rank = 0; rank < 4; ++rank) {
    ranks.wait_for_output(rank, "under way over shm+gloo");
  }
  const auto start = std::chrono::steady_clock::now();
  ranks.kill(1);
  const auto results = ranks.wait();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  for (const std::size_t rank : {0, 2, 3}) {
    EXPECT_EQ(results[rank].exit_code, 1);
    EXPECT_THAT(results[rank].output, HasSubstr("lost the connection"));
  }
  EXPECT_THAT(results[0].output, ContainsRegex("ranks? [0-9, ]*1"));
}

}  // namespace
}  // namespace nfold
