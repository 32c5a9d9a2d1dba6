// Loss scaling and gradients that are not finite.
#include <cmath>
#include <limits>

#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string fp16(const std::string& members) {
  return R"(, "fp16": {"enabled": true)" + members + "}";
}

Vectors small_model() { return Vectors(std::vector<std::int64_t>{5, 8}); }

// Gives element 3 of w1 the gradient `value`, on this rank.
at::Tensor spoiled(Vectors& model, const at::Tensor& loss, double value) {
  return loss + model->weights[1].narrow(0, 3, 1).to(at::kFloat).sum() * value;
}

// Behaviour 3.6.6: the step that doubles the scale must not halve the update.
TEST(EngineLossScale, GrowthStepsUseTheScaleOfTheirLoss) {
  for (const int stage : {0, 1, 2}) {
    for (const int num_ranks : {1, 2}) {
      const auto config = config_of(
          {.stage = stage,
           .more =
               fp16(R"(, "initial_scale_power": 4, "loss_scale_window": 2)")});
      on_ranks(num_ranks, config, [&](World& /*world*/, Mesh& mesh) {
        Vectors model(std::vector<std::int64_t>{4});
        Engine engine(model, mesh, config);
        auto expected = VectorsImpl::initial(0, 4);
        for (int step = 1; step <= 8; ++step) {
          const double scale = std::ldexp(1.0, 4 + std::max(0, step - 2) / 2);
          EXPECT_EQ(engine.loss_scale(), scale) << step;
          const auto report =
              train_step(engine, model->weights[0].to(at::kFloat).sum());
          EXPECT_EQ(report.loss_scale, scale) << step;
          EXPECT_EQ(report.grad_norm, 2) << step;
          EXPECT_FALSE(report.is_skipped);
          expected -= 0.25;
          EXPECT_TRUE(same_bits(
              safe_get_full_fp32_param(engine, model->weights[0]), expected))
              << step;
        }
      });
    }
  }
}

std::vector<at::Tensor> state_of(Engine& engine, Vectors& model) {
  std::vector<at::Tensor> state;
  for (const auto& weight : model->weights) {
    state.push_back(weight.detach().clone());
    state.push_back(safe_get_full_fp32_param(engine, weight));
    for (const auto* name : {"exp_avg", "exp_avg_sq"}) {
      state.push_back(safe_get_full_optimizer_state(engine, weight, name));
    }
  }
  return state;
}

void expect_same(const std::vector<at::Tensor>& found,
                 const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(same_bits(found[i], expected[i])) << i;
  }
}

struct OverflowCase {
  int stage;
  std::string precision;

  friend void PrintTo(const OverflowCase& c, std::ostream* out) {
    *out << "stage " << c.stage << c.precision;
  }
};

class EngineOverflowTest : public ::testing::TestWithParam<OverflowCase> {
 protected:
  static Config config(const std::string& more = "") {
    return config_of({.stage = GetParam().stage,
                      .optimizer = kAdamW,
                      .more = GetParam().precision + more});
  }
};

// One rank's overflow must reach all, although only one rank owns the element.
TEST_P(EngineOverflowTest, AllRanksSkipAndNameTheElement) {
  const auto settings = config();
  on_ranks(3, settings, [&](World& world, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, settings);
    train_step(engine, model->loss(world.rank()));
    const auto before = state_of(engine, model);
    for (const double value : {kInf, -kInf, kNan}) {
      auto loss = model->loss(7 + world.rank());
      if (world.rank() == 1) loss = spoiled(model, loss, value);
      const auto report = train_step(engine, loss);
      EXPECT_TRUE(report.is_skipped);
      EXPECT_EQ(report.non_finite, fmt::format("rank 1 w1[3] = {}", value));
      expect_same(state_of(engine, model), before);
    }
    EXPECT_EQ(engine.steps(), 4);
  });
}

TEST_P(EngineOverflowTest, SkippedStepsLeaveNoTrace) {
  // The schedule stands still with everything else.
  const auto settings = config(
      R"(, "scheduler": {"type": "WarmupLR", "params": {
             "warmup_max_lr": 0.1, "warmup_num_steps": 4}})");
  const auto train = [&](bool overflows) {
    std::vector<at::Tensor> state;
    on_ranks(2, settings, [&](World& world, Mesh& mesh) {
      auto model = small_model();
      Engine engine(model, mesh, settings);
      for (int step = 0; step < 4; ++step) {
        if (overflows && step == 2) {
          train_step(engine, spoiled(model, model->loss(1), kInf));
        }
        const auto report =
            train_step(engine, model->loss(step * 2 + world.rank()));
        EXPECT_FALSE(report.is_skipped);
        EXPECT_EQ(report.non_finite, "");
      }
      const auto own = state_of(engine, model);
      if (world.rank() == 0) state = own;
    });
    return state;
  };
  expect_same(train(true), train(false));
}

INSTANTIATE_TEST_SUITE_P(
    Precisions, EngineOverflowTest,
    ::testing::Values(OverflowCase{0, ""}, OverflowCase{2, ""},
                      OverflowCase{0, fp16(R"(, "loss_scale": 8)")},
                      OverflowCase{1, fp16(R"(, "loss_scale": 8)")},
                      OverflowCase{2, fp16(R"(, "initial_scale_power": 8)")},
                      OverflowCase{2, kBf16}),
    [](const ::testing::TestParamInfo<OverflowCase>& info) {
      return fmt::format("Case{}Stage{}", info.index, info.param.stage);
    });

TEST(EngineLossScale, StaticScaleNeverChanges) {
  const auto config = config_of({.more = fp16(R"(, "loss_scale": 128)")});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, config);
    for (int step = 0; step < 6; ++step) {
      const bool overflows = step % 2 == 1;
      const auto report = train_step(
          engine, spoiled(model, model->loss(world.rank()),
                          overflows && world.rank() == 0 ? kInf : 0));
      EXPECT_EQ(report.is_skipped, overflows);
      EXPECT_EQ(report.loss_scale, 128);
      EXPECT_EQ(engine.loss_scale(), 128);
    }
  });
}

// The value of each step's spoiled gradient, 0 for a clean one, and the scale
// after it (behaviour 3.7.10).
struct Trace {
  std::string settings;
  std::vector<double> values;
  std::vector<double> scales;
};

void expect_trace(const Trace& trace) {
  const auto config = config_of({.more = fp16(trace.settings)});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, config);
    for (std::size_t step = 0; step < trace.values.size(); ++step) {
      const double value = world.rank() == 1 ? trace.values[step] : 0;
      train_step(engine, spoiled(model, model->loss(0), value));
      EXPECT_EQ(engine.loss_scale(), trace.scales[step]) << "step " << step;
    }
    EXPECT_EQ(engine.steps(), trace.values.size());
  });
}

constexpr char kFrom256[] =
    R"(, "initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 1)";

TEST(EngineLossScale, CleanStepsDoubleTheScaleEveryWindow) {
  expect_trace({.settings = kFrom256,
                .values = {0, 0, 0, 0, 0, 0, 0},
                .scales = {256, 256, 512, 512, 1024, 1024, 2048}});
}

TEST(EngineLossScale, OverflowsHalveTheScaleToItsMinimum) {
  expect_trace({.settings = kFrom256,
                .values = {kInf, kNan, kInf, kInf, kNan, kInf, kInf, kInf},
                .scales = {128, 64, 32, 16, 8, 4, 2, 1}});
}

TEST(EngineLossScale, OverflowsAndCleanStepsMix) {
  expect_trace({.settings = kFrom256,
                .values = {kInf, kNan, 0, 0, 0, kInf},
                .scales = {128, 64, 64, 64, 128, 64}});
}

TEST(EngineLossScale, HysteresisAbsorbsTheFirstOverflow) {
  expect_trace(
      {.settings = R"(, "initial_scale_power": 8, "loss_scale_window": 2)",
       .values = {kInf, kInf, 0, 0, 0, 0, 0},
       .scales = {256, 128, 128, 128, 256, 256, 512}});
}

TEST(EngineLossScale, OverflowAtTheMinimumNamesTheParameter) {
  const auto config = config_of(
      {.more = fp16(R"(, "initial_scale_power": 0, "hysteresis": 1)")});
  std::vector<std::string> errors(2);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, config);
    const auto before = model->weights[1].detach().clone();
    engine.backward(
        spoiled(model, model->loss(0), world.rank() == 1 ? kInf : 0));
    errors[static_cast<std::size_t>(world.rank())] =
        error_of([&] { engine.step(); });
    EXPECT_TRUE(same_bits(model->weights[1], before));
    // Who catches it may go on.
    EXPECT_FALSE(train_step(engine, model->loss(0)).is_skipped);
  });
  for (const auto& error : errors) {
    EXPECT_THAT(error, AllOf(HasSubstr("step 1"), HasSubstr("minimum"),
                             HasSubstr("rank 1 w1[3] = inf")));
  }
}

TEST(EngineLossScale, AnUncheckedBf16OverflowIsNotSkipped) {
  const auto config = config_of(
      {.more = R"(, "bf16": {"enabled": true, "check_grad_overflow": false})"});
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, config);
    const auto before = model->weights[0].detach().clone();
    const auto report =
        train_step(engine, spoiled(model, model->loss(0), kInf));
    EXPECT_FALSE(report.is_skipped);
    EXPECT_FALSE(std::isfinite(report.grad_norm));
    EXPECT_NE(report.non_finite, "");
    EXPECT_FALSE(torch::equal(model->weights[0], before));
    EXPECT_TRUE(torch::isfinite(model->weights[0]).all().item<bool>());
    EXPECT_FALSE(std::isfinite(model->weights[1][3].item<float>()));
  });
}

// Every rank's gradients are finite in fp16, but their sum is not.
TEST(EngineLossScale, AnOverflowOfTheSumIsFoundToo) {
  const auto config = config_of({.more = fp16(R"(, "loss_scale": 1)")});
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    auto model = small_model();
    Engine engine(model, mesh, config);
    const auto report =
        train_step(engine, spoiled(model, model->loss(0), 60000));
    EXPECT_TRUE(report.is_skipped);
    EXPECT_THAT(report.non_finite, HasSubstr("sum over ranks"));
  });
}

}  // namespace
}  // namespace nfold::testing
