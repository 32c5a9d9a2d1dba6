// File: engine_test.h
//
// What the engine's tests share: configurations from a few words, ranks as
// threads with a mesh each, and models with gradients that are known exactly.
#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "nfold/nfold.h"
#include "testing/thread_world.h"

namespace nfold::testing {

inline constexpr char kSgd[] =
    R"({"type": "SGD", "params": {"lr": 0.25, "momentum": 0.0}})";
inline constexpr char kAdamW[] =
    R"({"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1}})";

struct ConfigText {
  int stage = 2;
  std::string optimizer = kSgd;  // empty: none
  std::string zero{};            // members, each with a leading comma
  std::string more{};            // members, each with a leading comma
  std::string clipping = "0";
};

inline Config config_of(const ConfigText& text) {
  return Config::from_json_text(
      R"({"train_micro_batch_size_per_gpu": 1, "gradient_clipping": )" +
      text.clipping +
      (text.optimizer.empty() ? "" : R"(, "optimizer": )" + text.optimizer) +
      R"(, "zero_optimization": {"stage": )" + std::to_string(text.stage) +
      text.zero + "}" + text.more + "}");
}

inline constexpr char kBf16[] = R"(, "bf16": {"enabled": true})";

inline void on_ranks(int num_ranks, const Config& config,
                     const std::function<void(World&, Mesh&)>& body,
                     const ThreadWorldOptions& options = {}) {
  run_ranks(
      num_ranks,
      [&](World& world) {
        at::set_num_threads(1);
        Mesh mesh(world, config);
        body(world, mesh);
      },
      options);
}

// Units are gathered by collectives and take memory of their own while whole.
inline constexpr ThreadWorldOptions kOverGloo{.transport = Transport::kGloo};

// Text of the error that the call raises, or "" if it raises none.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Equal bit for bit: 0 and -0 differ, NaN equals itself.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) {
    return false;
  }
  if (a.numel() == 0) return true;
  return torch::equal(a.detach().contiguous().reshape({-1}).view(at::kByte),
                      b.detach().contiguous().reshape({-1}).view(at::kByte));
}

// Parameters w0, w1, ... of given sizes and a loss that is linear in them, so
// that every gradient is known, and exact in bf16 and fp16.
struct VectorsImpl : torch::nn::Module {
  explicit VectorsImpl(const std::vector<std::int64_t>& sizes,
                       at::ScalarType dtype = at::kFloat) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      weights.push_back(register_parameter(fmt::format("w{}", i),
                                           initial(i, sizes[i]).to(dtype)));
    }
  }

  static at::Tensor initial(std::size_t i, std::int64_t size) {
    return torch::sin(torch::arange(size, at::kFloat) * 0.37 +
                      static_cast<double>(i));
  }

  // The gradient of weight i under loss(seed): eighths from -1 to 1.
  static at::Tensor gradient(std::size_t i, std::int64_t size,
                             std::int64_t seed) {
    const auto offset = static_cast<std::int64_t>(i) * 3 + seed * 5;
    return ((torch::arange(size) * 7 + offset).remainder(17) - 8)
               .to(at::kFloat) /
           8;
  }

  // The mean of gradient(i, size, first_seed + r) over ranks r.
  static at::Tensor mean_gradient(std::size_t i, std::int64_t size,
                                  std::int64_t first_seed, int num_ranks) {
    auto sum = torch::zeros({size});
    for (int rank = 0; rank < num_ranks; ++rank) {
      sum += gradient(i, size, first_seed + rank);
    }
    return sum / num_ranks;
  }

  at::Tensor loss(std::int64_t seed) {
    auto total = torch::zeros({});
    for (std::size_t i = 0; i < weights.size(); ++i) {
      total = total + term(i, seed);
    }
    return total;
  }

  at::Tensor term(std::size_t i, std::int64_t seed) {
    const auto& weight = weights[i];
    return (weight.to(at::kFloat) * gradient(i, weight.numel(), seed)).sum();
  }

  std::vector<at::Tensor> weights;
};
TORCH_MODULE(Vectors);

// Container elements that each become a unit, and a head.
struct TowerImpl : torch::nn::Module {
  explicit TowerImpl(std::int64_t width, int depth = 5) : width(width) {
    for (int i = 0; i < depth; ++i) {
      blocks->push_back(torch::nn::Linear(width, width));
    }
    register_module("blocks", blocks);
    head = register_module("head", torch::nn::Linear(width, 3));
    torch::NoGradGuard no_grad;
    std::int64_t index = 0;
    for (auto& param : parameters()) {
      param.copy_(torch::sin(torch::arange(param.numel()) * 0.7 +
                             static_cast<double>(index++))
                      .view(param.sizes()) /
                  std::sqrt(static_cast<double>(width)));
    }
  }

  at::Tensor forward(at::Tensor x) {
    x = x.to(head->weight.dtype());
    for (const auto& block : *blocks) {
      x = torch::tanh(block->as<torch::nn::Linear>()->forward(x));
    }
    return head(x);
  }

  // A loss that depends on step and rank.
  at::Tensor loss(std::int64_t seed) {
    const auto x =
        torch::cos(torch::arange(2 * width) * 0.3 + static_cast<double>(seed))
            .view({2, width});
    return forward(x).to(at::kFloat).square().mean();
  }

  std::int64_t width;
  torch::nn::ModuleList blocks;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Tower);

inline std::int64_t numel_of(const torch::nn::Module& module) {
  std::int64_t numel = 0;
  for (const auto& param : module.parameters()) numel += param.numel();
  return numel;
}

// One backward and step.
inline StepReport train_step(Engine& engine, const at::Tensor& loss) {
  engine.backward(loss);
  return engine.step();
}

// Stage 3 of nothing but released units. zero: further members, each with a
// leading comma.
inline Config stage3_config(const std::string& zero, int accumulation = 1,
                            const std::string& more = "",
                            const std::string& optimizer = kAdamW) {
  return config_of(
      {.stage = 3,
       .optimizer = optimizer,
       .zero = R"(, "stage3_param_persistence_threshold": 0)" + zero,
       .more =
           fmt::format(R"(, "gradient_accumulation_steps": {})", accumulation) +
           more});
}

// What a training leaves behind.
struct Run {
  std::vector<float> losses;       // of rank 0
  std::vector<double> norms;       // of rank 0
  std::vector<at::Tensor> params;  // whole, fp32
};

// Trains a tower on batches that every rank has other ones of.
inline Run train_tower(const Config& config, int num_ranks, int num_steps = 6) {
  Run run;
  on_ranks(num_ranks, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    const auto accumulation = config.gradient_accumulation_steps.value_or(1);
    for (int step = 0; step < num_steps; ++step) {
      StepReport report;
      at::Tensor loss;
      for (std::int64_t micro = 0; micro < accumulation; ++micro) {
        loss = model->loss((step * accumulation + micro) * num_ranks +
                           world.rank());
        engine.backward(loss);
        report = engine.step();
      }
      if (world.rank() != 0) continue;
      run.losses.push_back(loss.item<float>());
      run.norms.push_back(report.grad_norm);
    }
    for (const auto& param : model->parameters()) {
      const auto value = safe_get_full_fp32_param(engine, param);
      if (world.rank() == 0) run.params.push_back(value);
    }
  });
  return run;
}

// Losses and norms of every step, up to a relative tolerance.
template <typename RunType>
void expect_near_curves(const RunType& actual, const RunType& expected,
                        double tolerance) {
  ASSERT_EQ(actual.losses.size(), expected.losses.size());
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_NEAR(actual.losses[i], expected.losses[i],
                tolerance * std::abs(expected.losses[i]))
        << "step " << i;
    EXPECT_NEAR(actual.norms[i], expected.norms[i],
                tolerance * expected.norms[i])
        << "step " << i;
  }
}

inline void expect_near(const Run& actual, const Run& expected,
                        double tolerance) {
  expect_near_curves(actual, expected, tolerance);
  for (std::size_t i = 0; i < expected.params.size(); ++i) {
    EXPECT_LE((actual.params[i] - expected.params[i]).norm().item<double>(),
              tolerance * expected.params[i].norm().item<double>());
  }
}

// Bit for bit.
inline void expect_equal(const Run& actual, const Run& expected) {
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.norms, expected.norms);
  ASSERT_EQ(actual.params.size(), expected.params.size());
  for (std::size_t i = 0; i < expected.params.size(); ++i) {
    EXPECT_TRUE(same_bits(actual.params[i], expected.params[i])) << i;
  }
}

}  // namespace nfold::testing
