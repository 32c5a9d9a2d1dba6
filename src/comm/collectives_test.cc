#include "nfold/collectives.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "comm/group_impl.h"
#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

constexpr at::ScalarType kDtypes[] = {at::kFloat,  at::kBFloat16, at::kHalf,
                                      at::kDouble, at::kLong,     at::kChar,
                                      at::kByte};
// More than kStagingDepth chunks of any dtype, and an uneven tail.
constexpr std::int64_t kManyChunksNumel = (std::int64_t{5} << 20) + 3;

// What a rank contributes: the same on every thread, unlike on each rank, and
// such that the order of a sum changes its bits. Repeats after a prime number
// of elements.
at::Tensor values_of(int rank, std::int64_t numel, at::ScalarType dtype) {
  constexpr std::int64_t kPeriod = 10007;
  auto index = at::arange(std::min(numel, kPeriod), at::kLong) * 7919 +
               rank * 104729 + 13;
  at::Tensor values;
  if (at::isIntegralType(dtype, /*includeBool=*/false)) {
    values = index.remainder(61).sub(dtype == at::kByte ? 0 : 30).to(dtype);
  } else {
    auto fraction = index.remainder(1009).to(at::kDouble) / 1009 - 0.5;
    auto power = index.remainder(11).to(at::kDouble) - 5;
    values = (fraction * at::pow(4.0, power)).to(dtype);
  }
  if (numel <= kPeriod) return values;
  return values.repeat({(numel + kPeriod - 1) / kPeriod})
      .narrow(0, 0, numel)
      .contiguous();
}

std::vector<at::Tensor> values_of_all(int num_ranks, std::int64_t numel,
                                      at::ScalarType dtype) {
  std::vector<at::Tensor> values;
  for (int rank = 0; rank < num_ranks; ++rank) {
    values.push_back(values_of(rank, numel, dtype));
  }
  return values;
}

bool has_same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto x = a.contiguous();
  const auto y = b.contiguous();
  return x.scalar_type() == y.scalar_type() && x.numel() == y.numel() &&
         (x.numel() == 0 ||
          std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

// The documented order, written independently of the kernel: a range of ranks
// is split after the largest power of two that is smaller than it.
at::Tensor tree_sum(const std::vector<at::Tensor>& wide, std::size_t begin,
                    std::size_t end) {
  if (end - begin == 1) return wide[begin];
  std::size_t left = 1;
  while (left * 2 < end - begin) left *= 2;
  return tree_sum(wide, begin, begin + left) +
         tree_sum(wide, begin + left, end);
}

at::Tensor expected_sum(const std::vector<at::Tensor>& values) {
  const auto dtype = values.front().scalar_type();
  const bool widens = dtype == at::kBFloat16 || dtype == at::kHalf;
  std::vector<at::Tensor> wide;
  for (const auto& value : values) {
    wide.push_back(widens ? value.to(at::kFloat) : value);
  }
  return tree_sum(wide, 0, wide.size()).to(dtype);
}

at::Tensor shard_of(const at::Tensor& flat, int rank, int size) {
  const std::int64_t numel = flat.numel() / size;
  return flat.narrow(0, rank * numel, numel);
}

std::string case_name(at::ScalarType dtype, std::int64_t numel) {
  return c10::str(dtype, " ", numel);
}

// Every test below runs with 1, 2, 3 and 4 ranks.
class Collectives : public ::testing::TestWithParam<int> {
 protected:
  int num_ranks() const { return GetParam(); }

  // Calls the body for every dtype and for shards of many sizes.
  void for_each_case(
      const std::function<void(World&, at::ScalarType, std::int64_t)>& body) {
    run_ranks(num_ranks(), [&](World& world) {
      for (const auto dtype : kDtypes) {
        for (const std::int64_t numel : {0, 1, 2, 7, 8, 1023}) {
          SCOPED_TRACE(case_name(dtype, numel));
          body(world, dtype, numel);
        }
      }
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        SCOPED_TRACE(case_name(dtype, kManyChunksNumel));
        body(world, dtype, kManyChunksNumel / num_ranks());
      }
    });
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, Collectives, ::testing::Values(1, 2, 3, 4));

TEST_P(Collectives, AllGatherPutsShardsInRankOrder) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    auto output = at::zeros({numel * world.size()}, dtype);
    all_gather(world.group(), output, values_of(world.rank(), numel, dtype))
        .wait();
    EXPECT_TRUE(has_same_bits(
        output, at::cat(values_of_all(world.size(), numel, dtype))));
  });
}

TEST_P(Collectives, AllGatherOfShardInPlace) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    auto output = at::zeros({numel * world.size()}, dtype);
    auto shard = shard_of(output, world.rank(), world.size());
    shard.copy_(values_of(world.rank(), numel, dtype));
    all_gather(world.group(), output, shard).wait();
    EXPECT_TRUE(has_same_bits(
        output, at::cat(values_of_all(world.size(), numel, dtype))));
  });
}

TEST_P(Collectives, AllGatherCoalescedFillsEveryTensor) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    std::vector<at::Tensor> outputs;
    for (const std::int64_t shard_numel : {numel, std::int64_t{0}, numel + 5}) {
      auto output = at::zeros({shard_numel * world.size()}, dtype);
      shard_of(output, world.rank(), world.size())
          .copy_(values_of(world.rank(), shard_numel, dtype));
      outputs.push_back(output);
    }
    all_gather_coalesced(world.group(), outputs).wait();
    for (const auto& output : outputs) {
      EXPECT_TRUE(has_same_bits(
          output, at::cat(values_of_all(
                      world.size(), output.numel() / world.size(), dtype))));
    }
  });
}

TEST_P(Collectives, ReduceScatterSumsInTreeOrder) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    const std::int64_t full_numel = numel * world.size();
    auto output = at::zeros({numel}, dtype);
    reduce_scatter(world.group(), output,
                   values_of(world.rank(), full_numel, dtype))
        .wait();
    const auto sum =
        expected_sum(values_of_all(world.size(), full_numel, dtype));
    EXPECT_TRUE(
        has_same_bits(output, shard_of(sum, world.rank(), world.size())));
  });
}

TEST_P(Collectives, ReduceScatterKeepsItsInput) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    const auto values =
        values_of(world.rank(), numel * world.size(), dtype).contiguous();
    const auto input = values.clone();
    auto output = at::zeros({numel}, dtype);
    reduce_scatter(world.group(), output, input).wait();
    EXPECT_TRUE(has_same_bits(input, values));
    // In place: all but the own part.
    reduce_scatter_coalesced(world.group(), {input}).wait();
    auto expected = values.clone();
    shard_of(expected, world.rank(), world.size()).copy_(output);
    EXPECT_TRUE(has_same_bits(input, expected));
  });
}

TEST_P(Collectives, ReduceScatterMayOutputIntoItsPartOfTheInput) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    const std::int64_t full_numel = numel * world.size();
    auto input = values_of(world.rank(), full_numel, dtype);
    auto output = shard_of(input, world.rank(), world.size());
    reduce_scatter(world.group(), output, input).wait();
    const auto sum =
        expected_sum(values_of_all(world.size(), full_numel, dtype));
    EXPECT_TRUE(
        has_same_bits(output, shard_of(sum, world.rank(), world.size())));
  });
}

TEST_P(Collectives, ReduceScatterTakesMaximum) {
  run_ranks(num_ranks(), [](World& world) {
    const std::int64_t full_numel = 1023 * world.size();
    auto output = at::zeros({1023}, at::kFloat);
    reduce_scatter(world.group(), output,
                   values_of(world.rank(), full_numel, at::kFloat),
                   ReduceOp::kMax)
        .wait();
    auto max =
        at::stack(values_of_all(world.size(), full_numel, at::kFloat)).amax(0);
    EXPECT_TRUE(
        has_same_bits(output, shard_of(max, world.rank(), world.size())));
    auto coalesced = at::zeros({1023}, at::kFloat);
    reduce_scatter_coalesced(world.group(),
                             {values_of(world.rank(), full_numel, at::kFloat)},
                             /*is_empty=*/false, {coalesced}, ReduceOp::kMax)
        .wait();
    EXPECT_TRUE(has_same_bits(coalesced, output));
  });
}

TEST_P(Collectives, ReduceScatterCoalescedTreatsEmptyRanksAsZeros) {
  // Bit r says that rank r contributes nothing.
  for (int empty_ranks = 0; empty_ranks < (1 << num_ranks()); ++empty_ranks) {
    run_ranks(num_ranks(), [&](World& world) {
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
        const auto is_empty = [&](int rank) {
          return (empty_ranks >> rank & 1) != 0;
        };
        std::vector<at::Tensor> inputs;
        std::vector<at::Tensor> sums;
        for (const std::int64_t shard_numel : {7, 0, 1023}) {
          const std::int64_t numel = shard_numel * world.size();
          auto values = values_of_all(world.size(), numel, dtype);
          // Negative zero shows whether zeros are really added.
          if (dtype != at::kLong && numel > 0) {
            for (auto& value : values) value[0] = -0.0;
          }
          for (int rank = 0; rank < world.size(); ++rank) {
            if (is_empty(rank)) values[static_cast<std::size_t>(rank)].zero_();
          }
          sums.push_back(expected_sum(values));
          auto input = values[static_cast<std::size_t>(world.rank())].clone();
          // What an empty rank has in the tensor must not matter.
          if (is_empty(world.rank())) input.fill_(3);
          inputs.push_back(input);
        }
        reduce_scatter_coalesced(world.group(), inputs, is_empty(world.rank()))
            .wait();
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          EXPECT_TRUE(
              has_same_bits(shard_of(inputs[i], world.rank(), world.size()),
                            shard_of(sums[i], world.rank(), world.size())))
              << "tensor " << i << " " << dtype << " empty " << empty_ranks;
        }
      }
    });
  }
}

TEST_P(Collectives, ReduceScatterCoalescedOfManyChunksWithEmptyRank) {
  run_ranks(num_ranks(), [](World& world) {
    const bool is_empty = world.rank() == 0;
    const std::int64_t numel = kManyChunksNumel / world.size() * world.size();
    auto values = values_of_all(world.size(), numel, at::kFloat);
    values[0].zero_();
    auto input = values[static_cast<std::size_t>(world.rank())].clone();
    reduce_scatter_coalesced(world.group(), {input}, is_empty).wait();
    EXPECT_TRUE(has_same_bits(
        shard_of(input, world.rank(), world.size()),
        shard_of(expected_sum(values), world.rank(), world.size())));
  });
}

TEST_P(Collectives, AllReduceOfAnyElementCount) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    auto tensor = values_of(world.rank(), numel, dtype);
    all_reduce(world.group(), tensor).wait();
    EXPECT_TRUE(has_same_bits(
        tensor, expected_sum(values_of_all(world.size(), numel, dtype))));
  });
}

TEST_P(Collectives, AllReduceEqualsReduceScatterBitForBit) {
  run_ranks(num_ranks(), [](World& world) {
    const std::int64_t numel = 300000 * world.size();
    auto tensor = values_of(world.rank(), numel, at::kHalf);
    auto output = at::empty({300000}, at::kHalf);
    reduce_scatter(world.group(), output, tensor.clone()).wait();
    all_reduce(world.group(), tensor).wait();
    EXPECT_TRUE(
        has_same_bits(output, shard_of(tensor, world.rank(), world.size())));
  });
}

TEST_P(Collectives, AllReduceTakesMaximumAndKeepsNan) {
  run_ranks(num_ranks(), [](World& world) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    auto tensor = values_of(world.rank(), 9, at::kDouble);
    if (world.rank() == world.size() - 1) tensor[4] = nan;
    all_reduce(world.group(), tensor, ReduceOp::kMax).wait();
    auto values = values_of_all(world.size(), 9, at::kDouble);
    auto max = at::stack(values).amax(0);
    max[4] = nan;
    EXPECT_TRUE(at::allclose(tensor, max, 0, 0, /*equal_nan=*/true));
  });
}

TEST_P(Collectives, BroadcastFromEverySource) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    for (int source = 0; source < world.size(); ++source) {
      auto tensor = values_of(world.rank(), numel, dtype);
      broadcast(world.group(), tensor, source).wait();
      EXPECT_TRUE(has_same_bits(tensor, values_of(source, numel, dtype)));
    }
  });
}

TEST_P(Collectives, AllToAllExchangesParts) {
  for_each_case([&](World& world, at::ScalarType dtype, std::int64_t numel) {
    const std::int64_t full_numel = numel * world.size();
    auto output = at::zeros({full_numel}, dtype);
    all_to_all(world.group(), output,
               values_of(world.rank(), full_numel, dtype))
        .wait();
    std::vector<at::Tensor> parts;
    for (int rank = 0; rank < world.size(); ++rank) {
      parts.push_back(shard_of(values_of(rank, full_numel, dtype), world.rank(),
                               world.size()));
    }
    EXPECT_TRUE(has_same_bits(output, at::cat(parts)));
  });
}

TEST_P(Collectives, CountBytesByFormula) {
  run_ranks(num_ranks(), [](World& world) {
    const std::int64_t size = world.size();
    const std::int64_t numel = 24 * size;
    const std::int64_t bytes = numel * 4;  // B in nfold/collectives.h
    auto& group = world.group();
    auto full = at::zeros({numel});
    auto other = at::zeros({numel});
    auto shard = at::zeros({24});
    all_gather(group, full, shard).wait();
    all_gather_coalesced(group, {full, other}).wait();
    reduce_scatter(group, shard, full).wait();
    reduce_scatter_coalesced(group, {full, other}).wait();
    reduce_scatter_coalesced(group, {full, other}, /*is_empty=*/true).wait();
    all_reduce(group, full).wait();
    all_to_all(group, other, full).wait();
    broadcast(group, full, 0).wait();
    barrier(group).wait();
    const CommCounts counts = group.counts();
    const auto of = [&](Collective kind) {
      return counts[static_cast<std::size_t>(kind)];
    };
    const std::int64_t part = bytes * (size - 1) / size;
    EXPECT_EQ(of(Collective::kAllGather).calls, 2);
    EXPECT_EQ(of(Collective::kAllGather).bytes, 3 * part);
    EXPECT_EQ(of(Collective::kReduceScatter).calls, 3);
    EXPECT_EQ(of(Collective::kReduceScatter).bytes, 3 * part);
    EXPECT_EQ(of(Collective::kAllReduce).calls, 1);
    EXPECT_EQ(of(Collective::kAllReduce).bytes, 2 * part);
    EXPECT_EQ(of(Collective::kAllToAll).calls, 1);
    EXPECT_EQ(of(Collective::kAllToAll).bytes, part);
    EXPECT_EQ(of(Collective::kBroadcast).calls, 1);
    EXPECT_EQ(of(Collective::kBroadcast).bytes,
              world.rank() == 0 ? bytes * (size - 1) : 0);
    EXPECT_EQ(of(Collective::kBarrier).calls, 1);
    EXPECT_EQ(of(Collective::kBarrier).bytes, 0);
    EXPECT_EQ(group.busy_time().count() > 0, size > 1);
  });
}

TEST_P(Collectives, RunInOrderOfIssueWhileTheCallerGoesOn) {
  run_ranks(num_ranks(), [](World& world) {
    constexpr int kCalls = 20;
    auto full = at::zeros({world.size() * 100});
    auto shard = at::ones({100});
    std::vector<Pending> pendings;
    for (int i = 0; i < kCalls; ++i) {
      // Each depends on the one before it.
      pendings.push_back(all_gather(world.group(), full, shard));
      pendings.push_back(reduce_scatter(world.group(), shard, full));
      pendings.back().wait();
      shard.div_(world.size());
    }
    for (auto& pending : pendings) {
      EXPECT_TRUE(pending.is_done());
      pending.wait();
    }
    EXPECT_TRUE(at::equal(shard, at::ones({100})));
  });
}

TEST_P(Collectives, BadArgumentsAreErrorsAndSendNothing) {
  run_ranks(num_ranks(), [](World& world) {
    auto& group = world.group();
    const auto n = world.size();
    auto full = at::zeros({4 * n});
    auto shard = at::zeros({4});
    EXPECT_THROW(all_gather(group, full, at::zeros({5})), c10::ValueError);
    EXPECT_THROW(all_gather(group, full, shard.to(at::kHalf)), c10::ValueError);
    EXPECT_THROW(all_gather(group, at::Tensor(), shard), c10::ValueError);
    EXPECT_THROW(all_gather_coalesced(group, {}), c10::ValueError);
    EXPECT_THROW(all_gather_coalesced(group, {full, full.to(at::kHalf)}),
                 c10::ValueError);
    EXPECT_THROW(reduce_scatter(group, shard, at::zeros({4 * n + 1})),
                 c10::ValueError);
    EXPECT_THROW(all_reduce(group, at::zeros({4, 6}).t()), c10::ValueError);
    EXPECT_THROW(all_reduce(group, at::zeros({4}, at::kBool)),
                 c10::NotImplementedError);
    EXPECT_THROW(broadcast(group, full, n), c10::ValueError);
    EXPECT_THROW(broadcast(group, full, -1), c10::ValueError);
    EXPECT_THROW(all_to_all(group, full, full), c10::ValueError);
    if (n > 1) {
      EXPECT_THROW(all_gather_coalesced(group, {at::zeros({4 * n + 1})}),
                   c10::ValueError);
      EXPECT_THROW(reduce_scatter_coalesced(group, {at::zeros({4 * n + 1})}),
                   c10::ValueError);
      // The first part belongs to rank 0 alone; the last to rank n - 1.
      auto wrong = shard_of(full, (world.rank() + 1) % n, n);
      EXPECT_THROW(reduce_scatter(group, wrong, full), c10::ValueError);
    }
    const auto text =
        text_of<std::exception>([&] { broadcast(group, full, n); });
    EXPECT_THAT(text, HasSubstr(c10::str("[rank ", world.rank(), "]")));
    EXPECT_THAT(text, HasSubstr("broadcast: source"));
    // Nothing was issued, so the group still works.
    all_reduce(group, full).wait();
    for (const auto& count : group.counts()) EXPECT_EQ(count.bytes % 4, 0);
  });
}

TEST(AllReduce, RoundsOnceAfterTheSum) {
  // 256 + 1 + 1 is 258 in one rounding; bf16 after each step would stay at 256.
  run_ranks(3, [](World& world) {
    auto tensor = at::full({1}, world.rank() == 0 ? 256.0 : 1.0, at::kBFloat16);
    all_reduce(world.group(), tensor).wait();
    EXPECT_EQ(tensor.item<float>(), 258.0f);
  });
}

TEST(AllToAll, KeepsItsTensorsAlive) {
  run_ranks(2, [](World& world) {
    auto output = at::zeros({2000});
    auto pending =
        all_to_all(world.group(), output, at::full({2000}, world.rank() + 1.0));
    pending.wait();
    EXPECT_EQ(output[0].item<float>(), 1.0f);
    EXPECT_EQ(output[1999].item<float>(), 2.0f);
  });
}

}  // namespace
}  // namespace nfold
