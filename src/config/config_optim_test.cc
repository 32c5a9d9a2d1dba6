// Keys of the optimizer and of the scheduler.
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "config/config_test_text.h"
#include "nfold/config.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ConfigOptimizer, TypesAreReadInAnyCaseWithTheirDefaults) {
  const auto params = [](std::string_view type) {
    return read("{\"optimizer\": {\"type\": \"" + std::string(type) + "\"}}")
        .optimizer.value();
  };
  const OptimizerConfig adam = params("adam");
  EXPECT_EQ(adam.type, OptimizerType::kAdam);
  EXPECT_TRUE(adam.params.adam_w_mode);
  EXPECT_FALSE(adam.params.torch_adam);
  EXPECT_EQ(adam.params.lr, 1e-3);
  EXPECT_THAT(adam.params.betas, ElementsAre(0.9, 0.999));
  EXPECT_EQ(adam.params.eps, 1e-8);
  EXPECT_EQ(adam.params.weight_decay, 0);
  EXPECT_EQ(params("ADAMW").type, OptimizerType::kAdamW);
  EXPECT_EQ(params("Adagrad").params.lr, 1e-2);
  EXPECT_EQ(params("Adagrad").params.eps, 1e-10);
  EXPECT_EQ(params("Lion").params.lr, 1e-4);
  EXPECT_THAT(params("Lion").params.betas, ElementsAre(0.9, 0.99));
  EXPECT_EQ(params("SGD").type, OptimizerType::kSgd);
  EXPECT_EQ(params("RMSprop").params.alpha, 0.99);
}

TEST(ConfigOptimizer, ReadsItsSettings) {
  const OptimizerParams params =
      read(R"({"optimizer": {"type": "Adam", "params": {"lr": 3e-4,
               "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1,
               "adam_w_mode": false,
               "bias_correction": false}}})")
          .optimizer->params;
  EXPECT_EQ(params.lr, 3e-4);
  EXPECT_THAT(params.betas, ElementsAre(0.8, 0.95));
  EXPECT_EQ(params.eps, 1e-6);
  EXPECT_EQ(params.weight_decay, 0.1);
  EXPECT_FALSE(params.adam_w_mode);
  EXPECT_FALSE(params.bias_correction);
}

TEST(ConfigOptimizer, WrongSettingsAreNamedAllAtOnce) {
  const std::string error =
      error_of(R"({"optimizer": {"type": "AdamW", "params": {"lr": -1,
                   "betas": [0.9, 1.0], "momentum": 0.9, "max_grad_norm": 1,
                   "weight_deacy": 0.1}}})");
  EXPECT_THAT(
      error,
      AllOf(HasSubstr("5 problems"),
            HasSubstr("optimizer.params.lr: expected a number of at least 0"),
            HasSubstr("optimizer.params.betas[1]: expected a number from 0 and "
                      "below 1 but found 1.0"),
            HasSubstr("optimizer.params.momentum: is no setting of AdamW, "
                      "which has lr, betas, eps"),
            HasSubstr("optimizer.params.max_grad_norm: is no setting of an "
                      "optimizer; use gradient_clipping"),
            HasSubstr("optimizer.params.weight_deacy: unknown key; did you "
                      "mean weight_decay?")));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "Adam",
                           "params": {"betas": [0.9]}}})"),
              HasSubstr("expected a list of 2 numbers"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "SGD",
                           "params": {"nesterov": true}}})"),
              HasSubstr("true needs momentum above 0"));
}

TEST(ConfigOptimizer, UnknownAndMissingTypesListWhatThereIs) {
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "Adan",
                           "params": {"lr": 1, "anything": 2}}})"),
              HasSubstr("optimizer.type: expected Adam, AdamW, Adagrad, Lion, "
                        "SGD or RMSprop but found the text \"Adan\""));
  EXPECT_THAT(error_of(R"({"optimizer": {}})"),
              HasSubstr("optimizer.type: is required"));
  EXPECT_THAT(error_of(R"({"optimizer": "Adam"})"),
              AllOf(HasSubstr("1 problem\n"),
                    HasSubstr("optimizer: expected an object in braces")));
  for (const char* type : {"Lamb", "muon", "MuAdam", "MuAdamW", "MuSGD",
                           "OneBitAdam", "ZeroOneAdam", "OneBitLamb"}) {
    EXPECT_THAT(missing("{\"optimizer\": {\"type\": \"" + std::string(type) +
                        "\", \"params\": {\"lr\": 0.1}}}"),
                HasSubstr("is not available; choose Adam, AdamW, Adagrad, "
                          "Lion, SGD, RMSprop"))
        << type;
  }
}

TEST(ConfigOptimizer, TorchLoopsAlwaysCorrectTheBias) {
  EXPECT_TRUE(read(R"({"optimizer": {"type": "Adam",
                       "params": {"amsgrad": true}}})")
                  .optimizer->params.amsgrad);
  for (const char* key : {"amsgrad", "torch_adam"}) {
    EXPECT_THAT(error_of(R"({"optimizer": {"type": "Adam", "params":
                             {"bias_correction": false, ")" +
                         std::string(key) + "\": true}}}"),
                HasSubstr("optimizer.params.bias_correction: expected true"));
  }
}

TEST(ConfigScheduler, DefaultsAreDeepSpeeds) {
  const auto read_type = [](std::string_view type, std::string_view params) {
    return read("{\"scheduler\": {\"type\": \"" + std::string(type) +
                "\", \"params\": {" + std::string(params) + "}}}")
        .scheduler.value();
  };
  const SchedulerParams range = read_type("LRRangeTest", "").params;
  EXPECT_EQ(range.lr_range_test_min_lr, 1e-3);
  EXPECT_EQ(range.lr_range_test_step_size, 2000);
  EXPECT_EQ(range.lr_range_test_step_rate, 1);
  EXPECT_FALSE(range.lr_range_test_staircase);
  const SchedulerParams cycle =
      read_type("OneCycle", "\"cycle_min_lr\": 0.1, \"cycle_max_lr\": 0.2")
          .params;
  EXPECT_EQ(cycle.cycle_first_step_size, 2000);
  EXPECT_FALSE(cycle.cycle_second_step_size.has_value());
  EXPECT_EQ(cycle.cycle_first_stair_count, 0);
  EXPECT_EQ(cycle.decay_step_size, 0);
  EXPECT_EQ(cycle.cycle_min_mom, 0.8);
  EXPECT_EQ(cycle.cycle_max_mom, 0.9);
  const SchedulerParams warmup = read_type("warmuplr", "").params;
  EXPECT_EQ(warmup.warmup_min_lr, 0);
  EXPECT_FALSE(warmup.warmup_max_lr.has_value());
  EXPECT_EQ(warmup.warmup_num_steps, 1000);
  EXPECT_EQ(warmup.warmup_type, WarmupType::kLog);
  EXPECT_EQ(warmup.last_batch_iteration, -1);
  EXPECT_EQ(read_type("WarmupDecayLR", "\"total_num_steps\": 5e3")
                .params.warmup_max_lr,
            1e-3);
  const SchedulerParams cosine =
      read_type("WarmupCosineLR", "\"total_num_steps\": 5000").params;
  EXPECT_EQ(cosine.total_num_steps, 5000);
  EXPECT_EQ(cosine.warmup_min_ratio, 0);
  EXPECT_EQ(cosine.cos_min_ratio, 1e-4);
}

TEST(ConfigScheduler, RequiredAndImpossibleSettingsAreErrors) {
  const auto scheduler_error = [](std::string_view type,
                                  std::string_view params) {
    return error_of("{\"scheduler\": {\"type\": \"" + std::string(type) +
                    "\", \"params\": {" + std::string(params) + "}}}");
  };
  EXPECT_THAT(scheduler_error("OneCycle", ""),
              AllOf(HasSubstr("scheduler.params.cycle_min_lr: is required"),
                    HasSubstr("scheduler.params.cycle_max_lr: is required")));
  EXPECT_THAT(scheduler_error("WarmupDecayLR", ""),
              HasSubstr("total_num_steps: is required"));
  EXPECT_THAT(scheduler_error("WarmupCosineLR", "\"total_num_steps\": 10"),
              HasSubstr("expected at least warmup_num_steps, which is 1000"));
  for (const char* steps : {"0", "-1", "1.5", "\"many\""}) {
    EXPECT_THAT(scheduler_error("WarmupLR",
                                "\"warmup_num_steps\": " + std::string(steps)),
                HasSubstr("warmup_num_steps: expected an integer of at least "
                          "1"))
        << steps;
    EXPECT_THAT(scheduler_error("LRRangeTest", "\"lr_range_test_step_size\": " +
                                                   std::string(steps)),
                HasSubstr("lr_range_test_step_size: expected an integer"))
        << steps;
  }
  EXPECT_THAT(scheduler_error("WarmupLR", "\"warmup_type\": \"square\""),
              HasSubstr("expected log or linear"));
  EXPECT_THAT(scheduler_error("StepLR", ""),
              HasSubstr("expected LRRangeTest, OneCycle, WarmupLR, "
                        "WarmupDecayLR or WarmupCosineLR"));
  EXPECT_THAT(scheduler_error("WarmupLR", "\"total_num_steps\": 10"),
              HasSubstr("is no setting of WarmupLR"));
}

}  // namespace
}  // namespace nfold
