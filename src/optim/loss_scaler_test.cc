#include "optim/loss_scaler.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace nfold {
namespace {

using Trace = std::vector<std::pair<double, std::int64_t>>;

// (scale, hysteresis left) after each update; '1' is an overflow.
Trace trace_of(const DynamicLossScale& options, const std::string& updates) {
  LossScaler scaler(options);
  Trace trace;
  for (const char update : updates) {
    scaler.update(update == '1');
    trace.emplace_back(scaler.scale(), scaler.state().hysteresis_left);
  }
  return trace;
}

std::vector<double> scales_of(const DynamicLossScale& options,
                              const std::string& updates) {
  std::vector<double> scales;
  for (const auto& [scale, left] : trace_of(options, updates)) {
    scales.push_back(scale);
  }
  return scales;
}

TEST(LossScaler, SecondOverflowHalvesAndCleanWindowsDouble) {
  const Trace expected{{256, 1}, {128, 1}, {128, 1}, {128, 1},
                       {256, 2}, {256, 2}, {512, 2}};
  EXPECT_EQ(trace_of({.initial_scale = 256, .window = 2}, "1100000"), expected);
}

TEST(LossScaler, WithoutHysteresisEveryOverflowHalves) {
  EXPECT_THAT(scales_of({.initial_scale = 256, .window = 2, .hysteresis = 1},
                        "1010000"),
              testing::ElementsAre(128, 128, 64, 64, 64, 128, 128));
}

TEST(LossScaler, ConsecutiveHysteresisIsRefilledByACleanStep) {
  const Trace consecutive{{256, 1}, {256, 2}, {256, 1}, {256, 2}, {256, 1}};
  EXPECT_EQ(
      trace_of({.initial_scale = 256, .consecutive_hysteresis = true}, "10101"),
      consecutive);
  const Trace not_consecutive{{256, 1}, {256, 1}, {128, 1}, {128, 1}, {64, 1}};
  EXPECT_EQ(trace_of({.initial_scale = 256}, "10101"), not_consecutive);
}

TEST(LossScaler, OverflowAtTheMinimumSaysWhatToLookAt) {
  LossScaler scaler({.initial_scale = 4, .min_scale = 2, .hysteresis = 1});
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 2);
  const LossScalerState before = scaler.state();
  try {
    scaler.update(true);
    FAIL() << "an overflow at the minimum was accepted";
  } catch (const c10::ValueError& error) {
    const std::string text = error.what();
    EXPECT_THAT(text, testing::HasSubstr("minimum of 2"));
    EXPECT_THAT(text, testing::HasSubstr("fp16.min_loss_scale"));
    EXPECT_THAT(text, testing::HasSubstr("learning rate"));
  }
  EXPECT_EQ(scaler.state(), before);
}

TEST(LossScaler, OverflowAtTheMinimumIsSkippedIfAskedFor) {
  LossScaler scaler({.initial_scale = 1,
                     .min_scale = 1,
                     .hysteresis = 1,
                     .raises_at_min = false});
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 1);
}

TEST(LossScaler, MinimumIsReachedThoughNoPowerOfTwoBelow) {
  EXPECT_THAT(
      scales_of({.initial_scale = 8, .min_scale = 3, .hysteresis = 1}, "11"),
      testing::ElementsAre(4, 3));
}

TEST(LossScaler, GrowthIsCountedFromTheLastOverflow) {
  EXPECT_THAT(scales_of({.initial_scale = 256, .window = 3}, "0000000000"),
              testing::ElementsAre(256, 256, 256, 512, 512, 512, 1024, 1024,
                                   1024, 2048));
  EXPECT_THAT(scales_of({.initial_scale = 256, .window = 1}, "00000"),
              testing::ElementsAre(256, 512, 1024, 2048, 4096));
}

TEST(LossScaler, DoublingRefillsTheHysteresis) {
  const Trace expected{{256, 1}, {256, 1},  {256, 1}, {512, 2},
                       {512, 2}, {1024, 2}, {1024, 1}};
  EXPECT_EQ(trace_of({.initial_scale = 256, .window = 2}, "1000001"), expected);
}

TEST(LossScaler, CleanRunsGrowByOnePowerPerWindow) {
  LossScaler scaler({.initial_scale = 256, .window = 2});
  for (int k = 1; k <= 9; ++k) {
    scaler.update(false);
    EXPECT_EQ(scaler.scale(), 256 << ((k - 1) / 2)) << k;
    EXPECT_EQ(scaler.state().num_updates, k);
  }
}

TEST(LossScaler, EightOverflowsEndAtTheFloor) {
  EXPECT_EQ(
      scales_of({.initial_scale = 256, .hysteresis = 1}, "11111111").back(), 1);
}

TEST(LossScaler, OverflowsAndCleanStepsMix) {
  const std::vector<double> scales =
      scales_of({.initial_scale = 256, .window = 2, .hysteresis = 1}, "110001");
  EXPECT_EQ(scales[1], 64);
  EXPECT_EQ(scales[4], 128);
  EXPECT_EQ(scales[5], 64);
}

TEST(LossScaler, ConstantScaleNeverChanges) {
  LossScaler scaler(128.0);
  for (int i = 0; i < 5; ++i) scaler.update(i % 2 == 0);
  EXPECT_EQ(scaler.scale(), 128);
  EXPECT_FALSE(scaler.is_dynamic());
  EXPECT_EQ(scaler.state().num_updates, 5);
}

TEST(LossScaler, OverrideMakesItConstant) {
  LossScaler scaler({.initial_scale = 256, .hysteresis = 1});
  scaler.override_scale(10);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 10);
}

TEST(LossScaler, ContinuesFromItsState) {
  const DynamicLossScale options{.initial_scale = 256, .window = 2};
  LossScaler whole(options);
  for (const char update : std::string("110001")) whole.update(update == '1');
  LossScaler first(options);
  for (const char update : std::string("110")) first.update(update == '1');
  LossScaler second(options);
  second.set_state(first.state());
  for (const char update : std::string("001")) second.update(update == '1');
  EXPECT_EQ(second.state(), whole.state());
}

TEST(LossScaler, IsMadeFromTheConfiguration) {
  Config config;
  config.fp16.loss_scale = 64;
  EXPECT_EQ(make_loss_scaler(config).scale(), 1);
  config.fp16.enabled = true;
  EXPECT_EQ(make_loss_scaler(config).scale(), 64);
  EXPECT_FALSE(make_loss_scaler(config).is_dynamic());
  config.fp16.loss_scale = 0;
  const LossScaler dynamic = make_loss_scaler(config);
  EXPECT_TRUE(dynamic.is_dynamic());
  EXPECT_EQ(dynamic.scale(), 65536);
  EXPECT_EQ(dynamic.state().hysteresis_left, 2);
  config.fp16.enabled = false;
  config.bf16.enabled = true;
  EXPECT_EQ(make_loss_scaler(config).scale(), 1);
}

TEST(LossScaler, OptionsOutOfRangeAreRejected) {
  EXPECT_THROW(LossScaler(0.0), c10::ValueError);
  EXPECT_THROW(LossScaler(std::numeric_limits<double>::infinity()),
               c10::ValueError);
  EXPECT_THROW(LossScaler(DynamicLossScale{.window = 0}), c10::ValueError);
  EXPECT_THROW(LossScaler(DynamicLossScale{.hysteresis = 0}), c10::ValueError);
  EXPECT_THROW(LossScaler(DynamicLossScale{.min_scale = -1}), c10::ValueError);
}

}  // namespace
}  // namespace nfold
