// Gradients of graphs that hook-based sharding gets wrong.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Two parameters of equal size are two units; a bucket of one element makes
// each a bucket of its own.
constexpr char kUnitBuckets[] = R"(, "reduce_bucket_size": 1)";
constexpr std::int64_t kSize = 16;

Vectors two_vectors() {
  return Vectors(std::vector<std::int64_t>{kSize, kSize});
}

void expect_grad(Engine& engine, const at::Tensor& param,
                 const at::Tensor& expected) {
  const auto found = safe_get_full_grad(engine, param);
  EXPECT_TRUE(torch::allclose(found, expected, 1e-6, 1e-6))
      << found << expected;
}

struct GradientCase {
  int stage = 2;
  bool overlaps = false;
  std::string more_zero{};

  Config config(const std::string& zero = "") const {
    return config_of({.stage = stage,
                      .zero = std::string(kUnitBuckets) +
                              (overlaps ? R"(, "overlap_comm": true)" : "") +
                              more_zero + zero});
  }
};

class EngineGradientsTest : public ::testing::TestWithParam<GradientCase> {};

TEST_P(EngineGradientsTest, UnusedParametersHaveZeroGradients) {
  const auto config = GetParam().config();
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    engine.backward(model->term(0, world.rank()));
    expect_grad(engine, model->weights[0],
                VectorsImpl::mean_gradient(0, kSize, 0, 2));
    EXPECT_TRUE(torch::equal(safe_get_full_grad(engine, model->weights[1]),
                             torch::zeros({kSize})));
    engine.step();
    EXPECT_TRUE(same_bits(model->weights[1], VectorsImpl::initial(1, kSize)));
  });
}

TEST_P(EngineGradientsTest, ABranchOfOneRankCountsAsZeroOnTheOthers) {
  const auto config = GetParam().config();
  on_ranks(3, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    for (int step = 0; step < 2; ++step) {
      // w0 on rank 1 only, w1 on all but rank 1.
      const std::size_t used = world.rank() == 1 ? 0 : 1;
      engine.backward(model->term(used, world.rank()));
      expect_grad(engine, model->weights[0],
                  VectorsImpl::gradient(0, kSize, 1) / 3);
      expect_grad(engine, model->weights[1],
                  (VectorsImpl::gradient(1, kSize, 0) +
                   VectorsImpl::gradient(1, kSize, 2)) /
                      3);
      engine.step();
    }
  });
}

TEST_P(EngineGradientsTest, AParameterUsedTwiceHasTheSum) {
  const auto config = GetParam().config();
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    engine.backward(model->loss(world.rank()) +
                    2 * model->term(1, world.rank() + 5));
    expect_grad(engine, model->weights[1],
                VectorsImpl::mean_gradient(1, kSize, 0, 2) +
                    2 * VectorsImpl::mean_gradient(1, kSize, 5, 2));
  });
}

TEST_P(EngineGradientsTest, SeveralBackwardsAddUp) {
  auto config = GetParam().config();
  config.gradient_accumulation_steps = 2;
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    engine.backward(model->loss(world.rank()));
    EXPECT_FALSE(engine.is_boundary());
    EXPECT_FALSE(engine.step().is_boundary);
    // The second micro step does not use w1 at all.
    engine.backward(model->term(0, world.rank() + 7));
    EXPECT_TRUE(engine.is_boundary());
    expect_grad(engine, model->weights[0],
                (VectorsImpl::mean_gradient(0, kSize, 0, 2) +
                 VectorsImpl::mean_gradient(0, kSize, 7, 2)) /
                    2);
    expect_grad(engine, model->weights[1],
                VectorsImpl::mean_gradient(1, kSize, 0, 2) / 2);
    EXPECT_TRUE(engine.step().is_boundary);
  });
}

// Backward reaches the hook after w1's bucket was launched; the inner
// backward then gives w1 another gradient.
at::Tensor loss_with_inner_backward(Vectors& model, std::int64_t seed) {
  auto hidden = model->weights[0] * 1.0;
  hidden.register_hook([weight = model->weights[1]](at::Tensor grad) {
    const at::AutoGradMode grad_mode(true);
    (weight * weight).sum().backward();
    return grad;
  });
  const auto first = (hidden * VectorsImpl::gradient(0, kSize, seed)).sum();
  return first + model->term(1, seed);
}

TEST_P(EngineGradientsTest, ABackwardInsideABackwardAddsItsGradients) {
  const auto config = GetParam().config();
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    for (int step = 0; step < 2; ++step) {
      const auto before = model->weights[1].detach().clone();
      engine.backward(loss_with_inner_backward(model, world.rank()));
      expect_grad(engine, model->weights[0],
                  VectorsImpl::mean_gradient(0, kSize, 0, 2));
      expect_grad(engine, model->weights[1],
                  VectorsImpl::mean_gradient(1, kSize, 0, 2) + 2 * before);
      engine.step();
    }
  });
}

TEST_P(EngineGradientsTest, AnInnerBackwardOnOneRankOnly) {
  const auto config = GetParam().config();
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    const auto before = model->weights[1].detach().clone();
    engine.backward(world.rank() == 1 ? loss_with_inner_backward(model, 1)
                                      : model->loss(0));
    expect_grad(engine, model->weights[1],
                VectorsImpl::mean_gradient(1, kSize, 0, 2) + before);
  });
}

TEST_P(EngineGradientsTest, AnExceptionInBackwardLeavesNothingBehind) {
  const auto config = GetParam().config();
  const auto train = [&](bool fails) {
    std::vector<at::Tensor> weights;
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      auto model = two_vectors();
      Engine engine(model, mesh, config);
      for (int step = 0; step < 4; ++step) {
        if (fails && step == 2) {
          auto hidden = model->weights[0] * 1.0;
          hidden.register_hook([](at::Tensor grad) {
            TORCH_CHECK(false, "out of luck");
            return grad;
          });
          // w1's bucket is under way when w0's gradient fails.
          EXPECT_THAT(error_of([&] {
                        engine.backward(hidden.sum() + model->term(1, 9));
                      }),
                      HasSubstr("out of luck"));
          EXPECT_NE(error_of([&] { engine.step(); }), "");
        }
        train_step(engine, model->loss(step + world.rank()));
      }
      EXPECT_EQ(engine.steps(), 4);
      if (world.rank() != 0) return;
      for (const auto& weight : model->weights) {
        weights.push_back(weight.detach().clone());
      }
    });
    return weights;
  };
  const auto expected = train(false);
  const auto found = train(true);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(same_bits(found[i], expected[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ways, EngineGradientsTest,
    ::testing::Values(
        GradientCase{.stage = 0}, GradientCase{.stage = 2},
        GradientCase{.stage = 2, .overlaps = true},
        GradientCase{.stage = 2, .more_zero = R"(, "reduce_scatter": false)"},
        GradientCase{.stage = 1,
                     .more_zero = R"(, "reduce_at_boundary": true)"}),
    [](const ::testing::TestParamInfo<GradientCase>& info) {
      return fmt::format("Stage{}{}", info.param.stage,
                         info.param.overlaps            ? "Overlapping"
                         : info.param.more_zero.empty() ? ""
                         : info.param.stage == 1        ? "AtBoundary"
                                                        : "AllReduced");
    });

TEST(EngineGradients, OverlapChangesNoBit) {
  const auto train = [](bool overlaps) {
    const auto config = GradientCase{.stage = 2, .overlaps = overlaps}.config();
    at::Tensor last;
    on_ranks(3, config, [&](World& world, Mesh& mesh) {
      Tower model(24);
      Engine engine(model, mesh, config);
      for (int step = 0; step < 5; ++step) {
        train_step(engine, model->loss(step * 3 + world.rank()));
      }
      const auto flat =
          torch::nn::utils::parameters_to_vector(model->parameters());
      if (world.rank() == 1) last = flat.detach().clone();
    });
    return last;
  };
  EXPECT_TRUE(same_bits(train(false), train(true)));
}

struct LookupImpl : torch::nn::Module {
  explicit LookupImpl(bool is_sparse)
      : table(torch::nn::EmbeddingOptions(9, 4).sparse(is_sparse)) {
    register_module("table", table);
    torch::NoGradGuard no_grad;
    table->weight.fill_(0.5);
  }
  torch::nn::Embedding table;
};
TORCH_MODULE(Lookup);

TEST(EngineGradients, SparseGradientsCountLikeDenseOnes) {
  for (const int stage : {0, 2}) {
    const auto config = config_of({.stage = stage});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      std::vector<at::Tensor> grads;
      for (const bool is_sparse : {true, false}) {
        Lookup model(is_sparse);
        Engine engine(model, mesh, config);
        // Token 3 twice on each rank.
        const auto tokens = torch::tensor({3, 1 + world.rank(), 3}, at::kLong);
        engine.backward(model->table(tokens).square().sum());
        grads.push_back(safe_get_full_grad(engine, model->table->weight));
        engine.step();
        EXPECT_NE(model->table->weight[3][0].item<float>(), 0.5f);
        EXPECT_EQ(model->table->weight[8][0].item<float>(), 0.5f);
      }
      EXPECT_TRUE(torch::equal(grads[0], grads[1]));
      EXPECT_EQ(grads[0][3][0].item<float>(), 2.0f);
      EXPECT_EQ(grads[0][1][0].item<float>(), 0.5f);
    });
  }
}

TEST(EngineGradients, UnusedParametersAreNamedWhenNotIgnored) {
  const auto config =
      GradientCase{}.config(R"(, "ignore_unused_parameters": false)");
  std::vector<std::string> errors(2);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    train_step(engine, model->loss(0));
    errors[static_cast<std::size_t>(world.rank())] =
        error_of([&] { engine.backward(model->term(1, 0)); });
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_THAT(errors[rank],
                AllOf(HasSubstr(fmt::format("rank {}", rank)), HasSubstr("w0"),
                      HasSubstr("ignore_unused_parameters"),
                      ::testing::Not(HasSubstr("w1"))));
  }
}

TEST(EngineGradients, GradientsOfTheUsersOwnBackwardAreLeftAlone) {
  const auto config = config_of({});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = two_vectors();
    Engine engine(model, mesh, config);
    const auto grads = torch::autograd::grad({model->loss(3)}, model->weights);
    EXPECT_TRUE(torch::equal(grads[0], VectorsImpl::gradient(0, kSize, 3)));
    engine.backward(model->loss(world.rank()));
    expect_grad(engine, model->weights[0],
                VectorsImpl::mean_gradient(0, kSize, 0, 2));
    // Gradients live in buckets and shards, not in the parameters.
    EXPECT_FALSE(model->weights[0].grad().defined());
  });
}

TEST(EngineGradients, ReduceScalesAndSums) {
  struct Way {
    const char* more;
    double factor;  // of the mean
  };
  for (const Way& way : {Way{R"(, "prescale_gradients": true)", 1},
                         Way{R"(, "gradient_predivide_factor": 4.0)", 1},
                         Way{R"(, "gradient_allreduce_op": "sum")", 2}}) {
    SCOPED_TRACE(way.more);
    const auto config = config_of({.stage = 1, .more = way.more});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      auto model = two_vectors();
      Engine engine(model, mesh, config);
      engine.backward(model->loss(world.rank()));
      expect_grad(engine, model->weights[1],
                  VectorsImpl::mean_gradient(1, kSize, 0, 2) * way.factor);
    });
  }
}

}  // namespace
}  // namespace nfold::testing
