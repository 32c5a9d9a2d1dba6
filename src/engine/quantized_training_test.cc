// Weights gathered in 8 bits, gradients reduced in 4, frozen parameters that
// rest in 8: the same training, nearly, with a fraction of the bytes.
#include "engine/engine_impl.h"
#include "engine/engine_test.h"
#include "nfold/quantized_collectives.h"
#include "testing/scoped_node_size.h"

namespace nfold::testing {
namespace {

constexpr char kWeights[] = R"(, "zero_quantized_weights": true)";
constexpr char kGradients[] = R"(, "zero_quantized_gradients": true)";
constexpr char kFeedback[] = R"(, "zeropp_loco_param": {"err_beta": 0.8,
                                                        "reset_T": 1024})";
constexpr char kFrozen[] = R"(, "zero_quantized_nontrainable_weights": true)";

// Re-gathering in backward is forced.
Config quantized_config(const std::string& zero, int accumulation = 1,
                        const std::string& more = "",
                        const std::string& optimizer = kAdamW) {
  return stage3_config(R"(, "stage3_max_reuse_distance": 0)" + zero,
                       accumulation, more, optimizer);
}

std::string hpz(int size) {
  return fmt::format(R"(, "zero_hpz_partition_size": {})", size);
}

double mean_of_last(const std::vector<float>& losses, std::size_t count) {
  double sum = 0;
  for (std::size_t i = losses.size() - count; i < losses.size(); ++i) {
    sum += losses[i];
  }
  return sum / static_cast<double>(count);
}

// Towers learn to output zeros, so what is left at the end is small and noisy;
// what counts is how far the loss came down.
void expect_as_good(const Run& actual, const Run& expected, double tolerance) {
  const double start = expected.losses.front();
  EXPECT_EQ(actual.losses.size(), expected.losses.size());
  EXPECT_NEAR(mean_of_last(actual.losses, 5), mean_of_last(expected.losses, 5),
              tolerance * start);
  EXPECT_LT(mean_of_last(actual.losses, 5), 0.2 * start);
}

TEST(QuantizedTrainingTest, WeightsComeWithinOnePercent) {
  for (const int num_ranks : {2, 3, 4}) {
    const auto expected = train_tower(quantized_config(""), num_ranks, 40);
    expect_as_good(train_tower(quantized_config(kWeights), num_ranks, 40),
                   expected, 0.01);
  }
}

TEST(QuantizedTrainingTest, WeightsAndGradientsComeWithinTwoPercent) {
  for (const int num_ranks : {2, 3, 4}) {
    const auto expected = train_tower(quantized_config(""), num_ranks, 40);
    for (const std::string feedback : {"", kFeedback}) {
      const auto zero = std::string(kWeights) + kGradients + feedback;
      expect_as_good(train_tower(quantized_config(zero), num_ranks, 40),
                     expected, 0.02);
    }
  }
}

TEST(QuantizedTrainingTest, Bf16AndAccumulation) {
  for (const auto* more : {"", kBf16}) {
    const auto expected = train_tower(quantized_config("", 2, more), 3, 30);
    const auto zero = std::string(kWeights) + kGradients + kFeedback;
    expect_as_good(train_tower(quantized_config(zero, 2, more), 3, 30),
                   expected, 0.02);
  }
}

// Two hops or one, each rank its own node or all on one.
TEST(QuantizedTrainingTest, NodesOfAnySize) {
  const auto expected = train_tower(quantized_config(""), 4, 30);
  for (const int node_size : {1, 2, 4, 8}) {
    const ScopedNodeSize nodes(node_size);
    const auto zero = std::string(kWeights) + kGradients;
    expect_as_good(train_tower(quantized_config(zero), 4, 30), expected, 0.02);
  }
}

TEST(QuantizedTrainingTest, ARunHasTheSameBitsEachTime) {
  const auto config =
      quantized_config(std::string(kWeights) + kGradients + kFeedback);
  expect_equal(train_tower(config, 3), train_tower(config, 3));
}

// The codec gives decoded values the same bytes again.
TEST(QuantizedTrainingTest, SecondaryShardsChangeNothing) {
  for (const auto& [num_ranks, size] : {std::pair{2, 2}, {4, 2}, {6, 3}}) {
    for (const auto* more : {"", kBf16}) {
      for (const auto& zero :
           {std::string(kWeights), std::string(kWeights) + kGradients}) {
        expect_equal(
            train_tower(quantized_config(zero + hpz(size), 1, more), num_ranks),
            train_tower(quantized_config(zero, 1, more), num_ranks));
      }
    }
  }
}

TEST(QuantizedTrainingTest, AllRanksHaveTheSameWeights) {
  const auto config = quantized_config(std::string(kWeights) + kGradients);
  on_ranks(3, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    for (int step = 0; step < 4; ++step) {
      train_step(engine, model->loss(step * 3 + world.rank()));
      torch::NoGradGuard no_grad;
      auto losses = torch::zeros({3});
      losses[world.rank()] = model->loss(0);
      all_reduce(world.group(), losses).wait();
      EXPECT_EQ(losses[0].item<float>(), losses[1].item<float>());
      EXPECT_EQ(losses[0].item<float>(), losses[2].item<float>());
    }
  });
}

// What an optimizer updates is never rounded: a tiny update is not lost.
TEST(QuantizedTrainingTest, MasterWeightsStayExact) {
  const auto config = quantized_config(kWeights, 1, "", R"({"type": "SGD",
      "params": {"lr": 1e-4, "momentum": 0.0}})");
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{1023});
    Engine engine(model, mesh, config);
    auto expected = VectorsImpl::initial(0, 1023);
    for (int step = 0; step < 3; ++step) {
      train_step(engine, model->loss(step * 2 + world.rank()));
      expected -= 1e-4F * VectorsImpl::mean_gradient(0, 1023, step * 2, 2);
    }
    EXPECT_TRUE(
        torch::allclose(safe_get_full_fp32_param(engine, model->weights[0]),
                        expected, 0, 1e-7));
  });
}

TEST(QuantizedTrainingTest, ScopesSeeExactValuesAndLeaveTrainingAlone) {
  const auto config = quantized_config(kWeights);
  std::vector<float> losses[2];
  for (const bool has_scopes : {false, true}) {
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Tower model(24);
      Engine engine(model, mesh, config);
      const auto look = [&] {
        if (!has_scopes) return;
        const auto exact =
            safe_get_full_fp32_param(engine, model->head->weight);
        const GatheredParameters scope(model->parameters());
        EXPECT_TRUE(torch::equal(model->head->weight.detach(), exact));
      };
      for (int step = 0; step < 4; ++step) {
        look();
        const auto loss = model->loss(step * 2 + world.rank());
        look();
        engine.backward(loss);
        look();
        engine.step();
        if (world.rank() == 0) losses[has_scopes].push_back(loss.item<float>());
      }
    });
  }
  EXPECT_EQ(losses[0], losses[1]);
}

TEST(QuantizedTrainingTest, AScopeChangesOnlyWhatItWrites) {
  const auto config = quantized_config(kWeights);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    model->loss(0);  // decoded values are whole now
    auto expected = safe_get_full_fp32_param(engine, model->head->weight);
    const auto bias = safe_get_full_fp32_param(engine, model->head->bias);
    {
      const GatheredParameters scope(model->head->weight, {.modifier_rank = 1});
      torch::NoGradGuard no_grad;
      model->head->weight[0][0] = 0.25F + static_cast<float>(world.rank());
    }
    expected[0][0] = 1.25F;
    EXPECT_TRUE(torch::equal(
        safe_get_full_fp32_param(engine, model->head->weight), expected));
    EXPECT_TRUE(torch::equal(
        safe_get_full_fp32_param(engine, model->head->bias), bias));
    engine.unshard_model();
    EXPECT_TRUE(torch::equal(model->head->weight.detach(), expected));
  });
}

// A tower of which the first two blocks are frozen.
Tower half_frozen(std::int64_t width) {
  Tower model(width);
  for (int i = 0; i < 2; ++i) {
    for (auto& param : model->blocks[i]->parameters()) {
      param.set_requires_grad(false);
    }
  }
  return model;
}

// Of the shards of all units: frozen ones in bytes.
std::int64_t bytes_at_rest(Engine& engine) {
  std::int64_t bytes = 0;
  for (const auto& unit : engine.impl().model().units()) {
    const auto numel = unit->layout().shard_numel;
    const auto item = c10::elementSize(unit->options().dtype);
    bytes += unit->options().is_trained
                 ? numel * static_cast<std::int64_t>(item)
                 : encoded_bytes(numel, kWeightCodec);
  }
  return bytes;
}

TEST(QuantizedTrainingTest, FrozenParametersRestInBytes) {
  for (const auto* more : {"", kBf16}) {
    const auto config = quantized_config(kFrozen, 1, more);
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      auto exact = half_frozen(128);
      auto model = half_frozen(128);
      Engine engine(model, mesh, config);
      const auto expected = bytes_at_rest(engine);
      EXPECT_EQ(engine.memory().params_bytes, expected);
      const auto frozen = model->blocks[0]->as<torch::nn::Linear>()->weight;
      const auto was = safe_get_full_fp32_param(engine, frozen);
      for (int step = 0; step < 3; ++step) {
        train_step(engine, model->loss(step * 2 + world.rank()));
      }
      EXPECT_EQ(engine.memory().params_bytes, expected);
      const auto is = safe_get_full_fp32_param(engine, frozen);
      EXPECT_TRUE(torch::equal(was, is)) << "nothing drifts";
      const auto truth =
          exact->blocks[0]->as<torch::nn::Linear>()->weight.detach();
      EXPECT_LE((is - truth).abs().max().item<float>(),
                truth.abs().max().item<float>() / 100);
    });
  }
}

// Values without random numbers: threads share the generator.
TEST(QuantizedTrainingTest, FrozenParametersThatInitBuildsRestInBytes) {
  const auto config = quantized_config(kFrozen);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    const auto model = nfold::init(mesh, config, [] {
      auto made =
          std::make_shared<VectorsImpl>(std::vector<std::int64_t>{20000, 5003});
      made->weights[0].set_requires_grad(false);
      return made;
    });
    Engine engine(model, mesh, config);
    EXPECT_EQ(engine.memory().params_bytes, bytes_at_rest(engine));
    EXPECT_LE((safe_get_full_fp32_param(engine, model->weights[0]) -
               VectorsImpl::initial(0, 20000))
                  .abs()
                  .max()
                  .item<float>(),
              1 / 128.0);
    train_step(engine, model->loss(world.rank()));
    EXPECT_EQ(engine.memory().params_bytes, bytes_at_rest(engine));
  });
}

TEST(QuantizedTrainingTest, FrozenParametersMayBeReplaced) {
  const auto config = quantized_config(std::string(kFrozen) + kWeights);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = half_frozen(24);
    Engine engine(model, mesh, config);
    const auto weight = model->blocks[0]->as<torch::nn::Linear>()->weight;
    {
      const GatheredParameters scope(weight, {.modifier_rank = 0});
      torch::NoGradGuard no_grad;
      weight.fill_(0.25);
    }
    EXPECT_TRUE(torch::equal(weight.clone(), torch::full_like(weight, 0.25)));
    safe_set_full_fp32_param(engine, weight, torch::full({24, 24}, 0.75));
    EXPECT_TRUE(torch::equal(weight.clone(), torch::full({24, 24}, 0.75)));
    train_step(engine, model->loss(world.rank()));
  });
}

struct StepTraffic {
  CommCounts all_ranks;
  CommCounts neighbours;
  CommCounts local;
  CommCounts global;
  std::int64_t weight_bytes = 0;    // of the shards of all units, encoded
  std::int64_t gradient_bytes = 0;  // of the same
  std::int64_t exact_bytes = 0;     // of the same, as they are
  std::int64_t num_units = 0;
};

CommCounts counts_of(const Group* group) {
  return group ? group->counts() : CommCounts{};
}

// Of the second step, on rank 0 of four in nodes of two.
StepTraffic traffic_of(const std::string& zero) {
  const ScopedNodeSize nodes(2);
  const auto config = quantized_config(zero);
  StepTraffic traffic;
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(64);
    Engine engine(model, mesh, config);
    const auto now = [&] {
      StepTraffic counted;
      counted.all_ranks = mesh.data_parallel().counts();
      counted.neighbours = counts_of(mesh.secondary_shard());
      counted.local = counts_of(mesh.find("all_to_all_local"));
      counted.global = counts_of(mesh.find("all_to_all_global"));
      return counted;
    };
    train_step(engine, model->loss(world.rank()));
    const auto before = now();
    engine.backward(model->loss(world.rank()));
    auto after = now();
    if (world.rank() != 0) return;
    const auto subtract = [](CommCounts& counts, const CommCounts& earlier) {
      for (std::size_t i = 0; i < counts.size(); ++i) {
        counts[i].bytes -= earlier[i].bytes;
        counts[i].calls -= earlier[i].calls;
      }
    };
    subtract(after.all_ranks, before.all_ranks);
    subtract(after.neighbours, before.neighbours);
    subtract(after.local, before.local);
    subtract(after.global, before.global);
    for (const auto& unit : engine.impl().model().units()) {
      const auto numel = unit->layout().shard_numel;
      after.weight_bytes += encoded_bytes(numel, kWeightCodec);
      after.gradient_bytes += encoded_bytes(numel, kGradientCodec);
      after.exact_bytes += numel * 4;
      ++after.num_units;
    }
    traffic = after;
  });
  return traffic;
}

std::int64_t bytes_of(const CommCounts& counts, Collective kind) {
  return counts[static_cast<std::size_t>(kind)].bytes;
}

TEST(QuantizedTrainingTest, SendsTheBytesOfItsFormulas) {
  const auto plain = traffic_of("");
  const auto coded = traffic_of(std::string(kWeights) + kGradients + hpz(2));
  // Forward gathers everything among all ranks, backward what it needs again.
  EXPECT_EQ(bytes_of(coded.all_ranks, Collective::kAllGather),
            3 * coded.weight_bytes);
  EXPECT_GT(bytes_of(coded.neighbours, Collective::kAllGather), 0);
  EXPECT_LE(bytes_of(coded.neighbours, Collective::kAllGather),
            2 * coded.weight_bytes);
  EXPECT_EQ(bytes_of(coded.local, Collective::kAllToAll),
            2 * coded.gradient_bytes);
  EXPECT_EQ(bytes_of(coded.global, Collective::kAllToAll),
            coded.gradient_bytes);
  EXPECT_EQ(bytes_of(coded.all_ranks, Collective::kReduceScatter), 0);
  EXPECT_EQ(bytes_of(plain.all_ranks, Collective::kReduceScatter),
            3 * plain.exact_bytes);
  const auto ratio = [](std::int64_t a, std::int64_t b) {
    return static_cast<double>(a) / static_cast<double>(b);
  };
  EXPECT_GE(ratio(coded.exact_bytes, coded.weight_bytes), 3.8);
  EXPECT_GE(ratio(bytes_of(plain.all_ranks, Collective::kReduceScatter),
                  bytes_of(coded.local, Collective::kAllToAll) +
                      bytes_of(coded.global, Collective::kAllToAll)),
            7);
}

TEST(QuantizedTrainingTest, AnOverflowSkipsTheStepAndForgetsErrors) {
  const auto config =
      quantized_config(std::string(kGradients) + kFeedback, 1,
                       R"(, "fp16": {"enabled": true, "initial_scale_power": 8,
                    "hysteresis": 1})");
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    EXPECT_FALSE(train_step(engine, model->loss(world.rank())).is_skipped);
    const auto before = safe_get_full_fp32_param(engine, model->head->weight);
    auto loss = model->loss(world.rank());
    if (world.rank() == 1) loss = loss * std::numeric_limits<float>::infinity();
    const auto report = train_step(engine, loss);
    EXPECT_TRUE(report.is_skipped);
    EXPECT_NE(report.non_finite.find("rank 1"), std::string::npos)
        << report.non_finite;
    EXPECT_TRUE(torch::equal(
        safe_get_full_fp32_param(engine, model->head->weight), before));
    const auto next = train_step(engine, model->loss(world.rank()));
    EXPECT_FALSE(next.is_skipped);
    EXPECT_LT(next.loss_scale, report.loss_scale);
  });
}

TEST(QuantizedTrainingTest, ErrorsKeptAreReportedAsMemoryOfGradients) {
  const auto grads_bytes = [](const std::string& zero) {
    std::int64_t bytes = 0;
    const auto config = quantized_config(zero);
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Tower model(128);
      Engine engine(model, mesh, config);
      const auto report = train_step(engine, model->loss(world.rank()));
      if (world.rank() == 0) bytes = report.memory.grads_bytes;
    });
    return bytes;
  };
  const auto without = grads_bytes(kGradients);
  const auto with = grads_bytes(std::string(kGradients) + kFeedback);
  // A byte for each element of the model, and scales.
  const auto numel = numel_of(*Tower(128));
  EXPECT_GE(with - without, numel);
  EXPECT_LE(with - without, numel * 11 / 10);
}

}  // namespace
}  // namespace nfold::testing
