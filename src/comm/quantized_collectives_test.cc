#include "nfold/quantized_collectives.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

const std::vector<std::int64_t> kShardNumels{0, 1, 7, 8, 128, 1023};

std::int64_t bytes_sent(const Group& group, Collective kind) {
  return group.counts()[static_cast<std::size_t>(kind)].bytes;
}

// Ranks in rows; the groups are made by all of them.
struct Table {
  Table(World& world, int num_nodes, int num_places)
      : nodes(num_nodes), places(num_places) {
    for (int place = 0; place < places && nodes > 1; ++place) {
      std::vector<int> column;
      for (int node = 0; node < nodes; ++node) {
        column.push_back(node * places + place);
      }
      if (auto made = world.new_group("inter", column)) inter = std::move(made);
    }
    for (int node = 0; node < nodes && places > 1; ++node) {
      std::vector<int> row;
      for (int place = 0; place < places; ++place) {
        row.push_back(node * places + place);
      }
      if (auto made = world.new_group("intra", row)) intra = std::move(made);
    }
  }

  ReductionHops hops() const { return {intra.get(), inter.get()}; }
  int size() const { return nodes * places; }

  int nodes;
  int places;
  std::unique_ptr<Group> intra;
  std::unique_ptr<Group> inter;
};

const std::vector<std::pair<int, int>> kTables{{1, 1}, {1, 2}, {2, 1}, {1, 3},
                                               {2, 2}, {1, 4}, {5, 1}, {1, 5},
                                               {2, 3}, {3, 2}};

// The gradient of a rank, the same wherever it is computed.
at::Tensor contribution(int rank, std::int64_t numel, std::uint64_t seed = 0) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(
      1000 * seed + static_cast<std::uint64_t>(rank));
  return at::randn({numel}, generator);
}

TEST(QuantizedAllGather, GivesEveryRankWhatTheCodecMakesOfEachShard) {
  for (const int size : {1, 2, 3, 4, 5, 6}) {
    run_ranks(size, [&](World& world) {
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        std::vector<at::Tensor> outputs;
        std::vector<at::Tensor> expected;
        for (const auto numel : kShardNumels) {
          const auto values = contribution(0, size * numel).to(dtype);
          auto output = at::full({size * numel}, std::nan(""), dtype);
          output.narrow(0, world.rank() * numel, numel)
              .copy_(values.narrow(0, world.rank() * numel, numel));
          outputs.push_back(std::move(output));
          std::vector<at::Tensor> shards;
          for (int rank = 0; rank < size; ++rank) {
            const auto shard = values.narrow(0, rank * numel, numel);
            shards.push_back(dequantized(quantized(shard, kWeightCodec), numel,
                                         dtype, kWeightCodec));
          }
          expected.push_back(at::cat(shards));
        }
        quantized_all_gather_coalesced(world.group(), outputs).wait();
        for (std::size_t i = 0; i < outputs.size(); ++i) {
          EXPECT_TRUE(at::equal(outputs[i], expected[i]))
              << size << " ranks, " << kShardNumels[i] << " of " << dtype;
        }
      }
    });
  }
}

TEST(QuantizedAllGather, SendsTheBytesOfItsFormula) {
  for (const int size : {1, 2, 3, 5}) {
    run_ranks(size, [&](World& world) {
      std::int64_t expected = 0;
      std::vector<at::Tensor> outputs;
      for (const auto numel : kShardNumels) {
        outputs.push_back(at::zeros({size * numel}));
        expected += (size - 1) * encoded_bytes(numel, kWeightCodec);
      }
      quantized_all_gather_coalesced(world.group(), outputs).wait();
      EXPECT_EQ(bytes_sent(world.group(), Collective::kAllGather), expected);
    });
  }
  run_ranks(2, [](World& world) {
    const auto numel = std::int64_t{1} << 16;
    const auto exact = at::zeros({2 * numel});
    all_gather_coalesced(world.group(), {exact}).wait();
    const auto plain = bytes_sent(world.group(), Collective::kAllGather);
    quantized_all_gather_coalesced(world.group(), {exact}).wait();
    const auto coded =
        bytes_sent(world.group(), Collective::kAllGather) - plain;
    EXPECT_GE(static_cast<double>(plain) / static_cast<double>(coded), 3.9);
  });
}

TEST(QuantizedAllGather, TakesEveryCodec) {
  run_ranks(3, [](World& world) {
    for (const BlockCodec codec :
         {BlockCodec{8, false, 64}, BlockCodec{4, true, 7},
          BlockCodec{4, false, 4096}}) {
      const auto output = contribution(0, 3 * 1023);
      const auto shard = output.narrow(0, 1023, 1023);
      const auto expected =
          dequantized(quantized(shard, codec), 1023, at::kFloat, codec);
      quantized_all_gather_coalesced(world.group(), {output}, codec).wait();
      EXPECT_TRUE(at::equal(output.narrow(0, 1023, 1023), expected));
    }
  });
}

// What each element may be off by: half a level of its block for each rank's
// contribution, and of its node's sum, and again as much at the far end.
double error_bound(int nodes, int places) {
  // randn of a block: 5 is more than it has.
  constexpr double kLargest = 5.5;
  const double level = kLargest / 8;
  double bound = 0;
  if (places > 1) bound += nodes * places * level;
  if (nodes > 1) bound += nodes * level * places * (places > 1 ? 1.2 : 1);
  return bound;
}

TEST(QuantizedReduceScatter, IsCloseToTheSumForAnyTableAndSize) {
  for (const auto& [nodes, places] : kTables) {
    run_ranks(nodes * places, [&, nodes = nodes,
                               places = places](World& world) {
      const Table table(world, nodes, places);
      const int size = table.size();
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        std::vector<at::Tensor> inputs;
        for (const auto numel : kShardNumels) {
          inputs.push_back(contribution(world.rank(), size * numel).to(dtype));
        }
        quantized_reduce_scatter_coalesced(table.hops(), inputs).wait();
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          const auto numel = kShardNumels[i];
          if (numel == 0) continue;
          auto sum = at::zeros({size * numel});
          for (int rank = 0; rank < size; ++rank) {
            sum += contribution(rank, size * numel).to(dtype).to(at::kFloat);
          }
          const auto begin = world.rank() * numel;
          const auto error =
              (inputs[i].narrow(0, begin, numel) - sum.narrow(0, begin, numel))
                  .abs();
          EXPECT_LE(error.max().item<float>(), error_bound(nodes, places) + 0.1)
              << nodes << " x " << places << ", " << numel;
          // One in 16 levels of it, on average.
          EXPECT_LE(error.mean().item<float>(),
                    0.35 * std::sqrt(size) * (nodes > 1 && places > 1 ? 2 : 1))
              << nodes << " x " << places << ", " << numel;
        }
      }
    });
  }
}

// In steps that the codec represents: then nothing is lost.
TEST(QuantizedReduceScatter, IsExactForSmallIntegers) {
  for (const auto& [nodes, places] : kTables) {
    run_ranks(
        nodes * places, [&, nodes = nodes, places = places](World& world) {
          const Table table(world, nodes, places);
          const int size = table.size();
          const std::int64_t numel = 300;
          // Levels -8 to 7 at a step of 1, of the sum of a node too.
          const auto input = at::zeros({size * numel});
          const auto pattern = at::arange(size * numel).remainder(2);
          if (world.rank() % places == 0) input.copy_(-8 * pattern);
          quantized_reduce_scatter_coalesced(table.hops(), {input}).wait();
          const auto begin = world.rank() * numel;
          EXPECT_TRUE(at::equal(input.narrow(0, begin, numel),
                                -8 * nodes * pattern.narrow(0, begin, numel)))
              << nodes << " x " << places;
        });
  }
}

TEST(QuantizedReduceScatter, SendsTheBytesOfItsFormula) {
  for (const auto& [nodes, places] : kTables) {
    run_ranks(nodes * places,
              [&, nodes = nodes, places = places](World& world) {
                const Table table(world, nodes, places);
                std::vector<at::Tensor> inputs;
                std::int64_t shard_bytes = 0;
                for (const auto numel : kShardNumels) {
                  inputs.push_back(at::zeros({table.size() * numel}));
                  shard_bytes += encoded_bytes(numel, kGradientCodec);
                }
                quantized_reduce_scatter_coalesced(table.hops(), inputs).wait();
                if (table.intra) {
                  EXPECT_EQ(bytes_sent(*table.intra, Collective::kAllToAll),
                            (places - 1) * nodes * shard_bytes);
                }
                if (table.inter) {
                  EXPECT_EQ(bytes_sent(*table.inter, Collective::kAllToAll),
                            (nodes - 1) * shard_bytes);
                }
              });
  }
}

// The sum of all that ranks send, over that of the exact one.
TEST(QuantizedReduceScatter, SendsSevenTimesLess) {
  run_ranks(4, [](World& world) {
    const Table table(world, 2, 2);
    const auto input = at::zeros({std::int64_t{1} << 18});
    reduce_scatter_coalesced(world.group(), {input.clone()}).wait();
    quantized_reduce_scatter_coalesced(table.hops(), {input}).wait();
    const auto exact = bytes_sent(world.group(), Collective::kReduceScatter);
    const auto coded = bytes_sent(*table.intra, Collective::kAllToAll) +
                       bytes_sent(*table.inter, Collective::kAllToAll);
    EXPECT_GE(static_cast<double>(exact) / static_cast<double>(coded), 7.5);
    // Two of the three others are on the other node.
    const auto crossing = bytes_sent(*table.inter, Collective::kAllToAll);
    EXPECT_GE(
        static_cast<double>(exact) * 2 / 3 / static_cast<double>(crossing), 15);
  });
}

TEST(QuantizedReduceScatter, ANonFiniteElementStaysVisible) {
  for (const auto& [nodes, places] : kTables) {
    run_ranks(
        nodes * places, [&, nodes = nodes, places = places](World& world) {
          const Table table(world, nodes, places);
          const std::int64_t numel = 300;
          const auto input = contribution(world.rank(), table.size() * numel);
          // In the middle of the last rank's shard, on rank 0.
          if (world.rank() == 0) {
            input[-150] = std::numeric_limits<float>::infinity();
          }
          quantized_reduce_scatter_coalesced(table.hops(), {input}).wait();
          const auto own = input.narrow(0, world.rank() * numel, numel);
          const bool is_last = world.rank() == table.size() - 1;
          EXPECT_EQ(at::isfinite(own).all().item<bool>(), !is_last);
          if (is_last) {
            EXPECT_FALSE(at::isfinite(own[150]).item<bool>());
          }
        });
  }
}

TEST(QuantizedReduceScatter, FeedbackBringsTheMeanOfManyCloserToTheTruth) {
  for (const auto& [nodes, places] :
       {std::pair{1, 2}, {2, 1}, {2, 2}, {3, 2}}) {
    run_ranks(nodes * places, [&, nodes = nodes,
                               places = places](World& world) {
      const Table table(world, nodes, places);
      const std::int64_t numel = 1023;
      const auto begin = world.rank() * numel;
      auto truth = at::zeros({table.size() * numel});
      for (int rank = 0; rank < table.size(); ++rank) {
        truth += contribution(rank, table.size() * numel);
      }
      const auto error_of = [&](ErrorFeedback* feedback) {
        auto mean = at::zeros({numel});
        constexpr int kRounds = 50;
        for (int i = 0; i < kRounds; ++i) {
          const auto input = contribution(world.rank(), table.size() * numel);
          quantized_reduce_scatter_coalesced(table.hops(), {input},
                                             kGradientCodec, feedback)
              .wait();
          mean += input.narrow(0, begin, numel) / kRounds;
        }
        return (mean - truth.narrow(0, begin, numel)).norm().item<float>();
      };
      ErrorFeedback feedback;
      EXPECT_LT(error_of(&feedback), error_of(nullptr) / 2)
          << nodes << " x " << places;
    });
  }
}

// What comes out of reducing zeros is what was owed.
TEST(ErrorFeedback, IsScaledDroppedAndForgotten) {
  run_ranks(2, [](World& world) {
    const Table table(world, 1, 2);
    const std::int64_t numel = 500;
    const auto reduce = [&](ErrorFeedback& feedback, double factor) {
      const auto input = contribution(world.rank(), 2 * numel) * factor;
      quantized_reduce_scatter_coalesced(table.hops(), {input}, kGradientCodec,
                                         &feedback)
          .wait();
      return input.narrow(0, world.rank() * numel, numel).clone();
    };
    ErrorFeedback once;
    reduce(once, 1);
    const auto owed = reduce(once, 0);
    EXPECT_GT(owed.abs().max().item<float>(), 0);
    EXPECT_EQ(once.bytes(),
              2 * encoded_bytes(numel, {.bits = 8, .block_numel = 128}));

    ErrorFeedback scaled;
    reduce(scaled, 1);
    scaled.scale(0.5F);
    EXPECT_TRUE(at::equal(reduce(scaled, 0), owed * 0.5));

    ErrorFeedback dropped;
    reduce(dropped, 1);
    dropped.drop();
    EXPECT_FALSE(reduce(dropped, 0).any().item<bool>());

    ErrorFeedback forgotten({.reset_period = 1});
    reduce(forgotten, 1);
    EXPECT_FALSE(reduce(forgotten, 0).any().item<bool>());
  });
}

TEST(QuantizedCollectives, RanksThatDivergeAreAnErrorOnAll) {
  run_ranks(2, [](World& world) {
    const auto numel = world.rank() == 0 ? 512 : 1024;
    const auto text = text_of<c10::DistBackendError>([&] {
      quantized_all_gather_coalesced(world.group(), {at::zeros({numel})})
          .wait();
    });
    EXPECT_NE(text.find("all_gather"), std::string::npos) << text;
  });
  run_ranks(2, [](World& world) {
    const Table table(world, 1, 2);
    const auto numel = world.rank() == 0 ? 512 : 1024;
    const auto text = text_of<c10::DistBackendError>([&] {
      quantized_reduce_scatter_coalesced(table.hops(), {at::zeros({numel})})
          .wait();
    });
    EXPECT_NE(text.find("all_to_all"), std::string::npos) << text;
  });
}

TEST(QuantizedCollectives, WhatDoesNotFitIsNamed) {
  run_ranks(2, [](World& world) {
    const Table table(world, 1, 2);
    EXPECT_NE(text_of<c10::ValueError>([&] {
                quantized_all_gather_coalesced(world.group(), {at::zeros({3})});
              }).find("a multiple of 2 elements"),
              std::string::npos);
    EXPECT_NE(text_of<c10::ValueError>([&] {
                quantized_reduce_scatter_coalesced(table.hops(),
                                                   {at::zeros({3})});
              }).find("a multiple of 2 elements"),
              std::string::npos);
    EXPECT_NE(text_of<c10::ValueError>([&] {
                quantized_reduce_scatter_coalesced(table.hops(), {});
              }).find("at least one tensor"),
              std::string::npos);
    ErrorFeedback feedback;
    const auto reduce = [&](std::int64_t numel) {
      quantized_reduce_scatter_coalesced(table.hops(), {at::zeros({numel})},
                                         kGradientCodec, &feedback)
          .wait();
    };
    reduce(512);
    EXPECT_NE(text_of<c10::ValueError>([&] {
                reduce(1024);
              }).find("tensors of other sizes"),
              std::string::npos);
  });
}

}  // namespace
}  // namespace nfold
