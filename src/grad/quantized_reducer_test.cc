// Gradients that travel quantized: close to the sum, wherever they come from.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "grad/grad_reducer.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

constexpr std::int64_t kCodedNumel = 1023;

GradReducerOptions coded_options(bool has_feedback = false) {
  GradReducerOptions options;
  options.codec = kGradientCodec;
  if (has_feedback) options.feedback.emplace();
  return options;
}

// Two units and a reducer of them.
struct CodedReducer {
  CodedReducer(World& world, const GradReducerOptions& options,
               at::ScalarType dtype = at::kFloat) {
    for (std::size_t i = 0; i < 2; ++i) {
      const auto name = fmt::format("p{}", i);
      params.push_back(
          torch::ones({kCodedNumel}, dtype).set_requires_grad(true));
      ShardedUnitOptions unit;
      unit.name = name;
      unit.dtype = dtype;
      unit.master_dtype = dtype;
      unit.rank = world.rank();
      unit.num_shards = world.size();
      unit.groups.holders = unit.groups.shard = &world.group();
      units.push_back(std::make_unique<ShardedUnit>(
          std::vector<ParamState>{{name, {name}, {params.back()}}}, unit));
      pointers.push_back(units.back().get());
    }
    reducer.emplace(world.group(), pointers, options);
  }

  void reduce(const std::vector<at::Tensor>& grads) {
    reducer->begin("test");
    auto loss = torch::zeros({});
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (grads[i].defined()) loss = loss + (params[i] * grads[i]).sum();
    }
    if (loss.requires_grad()) loss.backward();
    reducer->finish(true);
  }

  // The owned part of a whole gradient, without residue.
  at::Tensor owned_part(const at::Tensor& whole) {
    const auto range = units[0]->owned_range();
    const auto end = std::min(range.end(), kCodedNumel);
    return whole.slice(0, std::min(range.begin, end), end);
  }
  at::Tensor owned_grad(std::size_t i) {
    const auto range = units[0]->owned_range();
    const auto numel =
        std::clamp<std::int64_t>(kCodedNumel - range.begin, 0, range.numel);
    return units[i]->grad().narrow(0, 0, numel);
  }

  std::vector<at::Tensor> params;
  std::vector<std::unique_ptr<ShardedUnit>> units;
  std::vector<ShardedUnit*> pointers;
  std::optional<GradReducer> reducer;
};

at::Tensor rank_grad(int rank, std::size_t unit) {
  return torch::sin(torch::arange(kCodedNumel) * 0.37 + rank * 10 +
                    static_cast<double>(unit));
}

TEST(CodedReducer, IsCloseToTheSum) {
  for (const int size : {1, 2, 3, 4, 5}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      run_ranks(size, [&](World& world) {
        CodedReducer each(world, coded_options(), dtype);
        std::vector<at::Tensor> grads;
        for (std::size_t i = 0; i < 2; ++i) {
          grads.push_back(rank_grad(world.rank(), i).to(dtype));
        }
        each.reduce(grads);
        for (std::size_t i = 0; i < 2; ++i) {
          auto sum = torch::zeros({kCodedNumel});
          for (int rank = 0; rank < size; ++rank) sum += rank_grad(rank, i);
          const auto error = (each.owned_grad(i) - each.owned_part(sum)).abs();
          if (error.numel() == 0) continue;
          // A level is an eighth of the largest.
          EXPECT_LE(error.max().item<float>(), 0.13 * size + 0.05);
          EXPECT_LE(error.mean().item<float>(), 0.05 * size);
        }
      });
    }
  }
}

TEST(CodedReducer, SendsTheBytesOfTheCodec) {
  run_ranks(3, [](World& world) {
    CodedReducer each(world, coded_options());
    each.reduce({rank_grad(world.rank(), 0), rank_grad(world.rank(), 1)});
    const auto shard = each.units[0]->layout().shard_numel;
    const auto counts = world.group().counts();
    EXPECT_EQ(counts[static_cast<std::size_t>(Collective::kAllToAll)].bytes,
              2 * 2 * encoded_bytes(shard, kGradientCodec));
    EXPECT_EQ(
        counts[static_cast<std::size_t>(Collective::kReduceScatter)].calls, 0);
  });
}

TEST(CodedReducer, RanksWithoutAGradientCountAsZero) {
  run_ranks(3, [](World& world) {
    CodedReducer each(world, coded_options());
    const bool has_first = world.rank() == 1;
    each.reduce({has_first ? rank_grad(1, 0) : at::Tensor(), at::Tensor()});
    if (each.owned_grad(0).numel() == 0) return;
    EXPECT_LE((each.owned_grad(0) - each.owned_part(rank_grad(1, 0)))
                  .abs()
                  .max()
                  .item<float>(),
              0.13);
    EXPECT_FALSE(each.owned_grad(1).any().item<bool>());
  });
}

TEST(CodedReducer, ANonFiniteGradientArrives) {
  run_ranks(2, [](World& world) {
    CodedReducer each(world, coded_options(/*has_feedback=*/true));
    const auto bad = rank_grad(world.rank(), 0);
    if (world.rank() == 1) bad[3] = std::numeric_limits<float>::infinity();
    each.reduce({bad, rank_grad(world.rank(), 1)});
    EXPECT_EQ(at::isfinite(each.units[0]->grad()).all().item<bool>(),
              world.rank() != 0);
    EXPECT_TRUE(at::isfinite(each.units[1]->grad()).all().item<bool>());
    EXPECT_EQ(each.reducer->non_finite().has_value(), world.rank() == 1);
  });
}

TEST(CodedReducer, FeedbackGoesToTheNextReductionUntilDropped) {
  run_ranks(2, [](World& world) {
    const auto owed = [&](double ratio, bool drops) {
      CodedReducer each(world, coded_options(/*has_feedback=*/true));
      EXPECT_EQ(each.reducer->feedback_bytes(), 0);
      const auto grad = rank_grad(world.rank(), 0);
      each.reduce({grad, grad});
      EXPECT_GT(each.reducer->feedback_bytes(), 2 * kCodedNumel);
      for (auto* unit : each.pointers) unit->clear_grad();
      each.reducer->scale_feedback(ratio);
      if (drops) each.reducer->drop_feedback();
      each.reduce({at::Tensor(), at::Tensor()});
      return each.owned_grad(0).clone();
    };
    const auto once = owed(1, false);
    EXPECT_GT(once.abs().max().item<float>(), 0);
    EXPECT_TRUE(at::equal(owed(0.5, false), once * 0.5));
    EXPECT_FALSE(owed(1, true).any().item<bool>());
  });
}

TEST(CodedReducer, Fp64TravelsAsItIs) {
  run_ranks(2, [](World& world) {
    CodedReducer each(world, coded_options(), at::kDouble);
    const auto grad = torch::full({kCodedNumel}, 0.1, at::kDouble);
    each.reduce({grad, grad});
    EXPECT_TRUE(at::allclose(
        each.owned_grad(0).to(at::kDouble),
        torch::full_like(each.owned_grad(0), 0.2, at::kDouble), 0, 1e-7));
  });
}

}  // namespace
}  // namespace nfold
