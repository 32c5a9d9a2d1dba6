// Keys of the top level and of the precisions.
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "config/config_test_text.h"
#include "nfold/config.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ConfigPrecision, Fp16DefaultsAreDeepSpeeds) {
  const Fp16Config fp16 = read("{}").fp16;
  EXPECT_FALSE(fp16.enabled);
  EXPECT_FALSE(fp16.auto_cast);
  EXPECT_EQ(fp16.loss_scale, 0);
  EXPECT_EQ(fp16.initial_scale_power, 16);
  EXPECT_EQ(fp16.loss_scale_window, 1000);
  EXPECT_EQ(fp16.hysteresis, 2);
  EXPECT_FALSE(fp16.consecutive_hysteresis);
  EXPECT_EQ(fp16.min_loss_scale, 1);
  EXPECT_FALSE(fp16.fp16_master_weights_and_grads);
}

TEST(ConfigPrecision, LossScaleIsANumberEvenInQuotes) {
  EXPECT_EQ(read(R"({"fp16": {"loss_scale": "3"}})").fp16.loss_scale, 3);
  EXPECT_EQ(read(R"({"fp16": {"loss_scale": 128}})").fp16.loss_scale, 128);
  for (const char* value : {"true", "\"abc\"", "\"inf\"", "\"nan\"", "\"-3\"",
                            "-1", "null", "[]"}) {
    EXPECT_THAT(
        error_of("{\"fp16\": {\"loss_scale\": " + std::string(value) + "}}"),
        HasSubstr("fp16.loss_scale: expected a number of at least 0"))
        << value;
  }
}

TEST(ConfigPrecision, DynamicLossScaleSettingsAreNumbersAlways) {
  for (const char* key : {"loss_scale_window", "min_loss_scale"}) {
    for (const char* value : {"true", "\"abc\"", "\"inf\"", "null"}) {
      EXPECT_THAT(
          error_of("{\"fp16\": {\"" + std::string(key) + "\": " + value + "}}"),
          HasSubstr("fp16." + std::string(key)))
          << key << " " << value;
    }
    const std::string zero = "\"" + std::string(key) + "\": 0";
    EXPECT_NO_THROW(read("{\"fp16\": {" + zero + "}}"));
    EXPECT_NO_THROW(read("{\"fp16\": {\"enabled\": true, \"loss_scale\": 8, " +
                         zero + "}}"));
    EXPECT_THAT(error_of("{\"fp16\": {\"enabled\": true, " + zero + "}}"),
                HasSubstr(std::string(key) +
                          ": expected a number above 0 for a dynamic loss "
                          "scale but found 0"));
  }
  EXPECT_THAT(error_of("{\"fp16\": {\"min_loss_scale\": Infinity}}"),
              HasSubstr("not readable as JSON"));
}

TEST(ConfigPrecision, Bf16HasTwoNames) {
  const Bf16Config defaults = read("{}").bf16;
  EXPECT_FALSE(defaults.enabled);
  EXPECT_FALSE(defaults.immediate_grad_update);
  EXPECT_TRUE(defaults.check_grad_overflow);
  EXPECT_FALSE(defaults.bf16_master_weights_and_grads);
  EXPECT_FALSE(defaults.bf16_optimizer_states);
  EXPECT_TRUE(read(R"({"bf16": {"enabled": true}})").bf16.enabled);
  EXPECT_TRUE(read(R"({"bfloat16": {"enabled": true}})").bf16.enabled);
  EXPECT_THAT(error_of(R"({"bfloat16": {"enabled": true},
                           "bf16": {"enabled": true}})"),
              HasSubstr("bfloat16: is another name of bf16"));
  EXPECT_THAT(error_of(R"({"bfloat16": {"enabledd": true}})"),
              HasSubstr("bfloat16.enabledd: unknown key; did you mean "
                        "enabled?"));
}

TEST(ConfigPrecision, Fp16AndBf16AreExclusive) {
  EXPECT_THAT(
      error_of(R"({"fp16": {"enabled": true}, "bf16": {"enabled": true}})"),
      HasSubstr("bf16.enabled: expected false, as fp16.enabled is true"));
}

TEST(ConfigPrecision, MasterFlagsNeedTheirModeAndASharedState) {
  EXPECT_TRUE(read(R"({"fp16": {"enabled": true,
                       "fp16_master_weights_and_grads": true},
                       "zero_optimization": {"stage": 1}})")
                  .fp16.fp16_master_weights_and_grads);
  EXPECT_THAT(error_of(R"({"fp16": {"fp16_master_weights_and_grads": true}})"),
              AllOf(HasSubstr("needs fp16.enabled true"),
                    HasSubstr("needs zero_optimization.stage 1, 2 or 3")));
  EXPECT_THAT(error_of(R"({"bf16": {"enabled": true,
                           "bf16_optimizer_states": true}})"),
              HasSubstr("needs bf16.bf16_master_weights_and_grads true"));
}

TEST(ConfigPrecision, Bf16MasterWeightsAreNotAvailable) {
  EXPECT_THAT(missing(R"({"bf16": {"enabled": true,
                          "bf16_master_weights_and_grads": true,
                          "bf16_optimizer_states": true},
                          "zero_optimization": {"stage": 1}})"),
              AllOf(HasSubstr("2 problems"),
                    HasSubstr("use false, which keeps them in fp32")));
}

TEST(ConfigPrecision, DtypesFollowTheMode) {
  const Config fp32 = read("{}");
  EXPECT_EQ(fp32.param_dtype(), at::kFloat);
  EXPECT_EQ(fp32.comm_dtype(), at::kFloat);
  const Config fp16 = read(R"({"fp16": {"enabled": true}})");
  EXPECT_EQ(fp16.param_dtype(), at::kHalf);
  EXPECT_EQ(fp16.comm_dtype(), at::kHalf);
  const Config bf16 = read(R"({"bf16": {"enabled": true}})");
  EXPECT_EQ(bf16.param_dtype(), at::kBFloat16);
  EXPECT_EQ(bf16.comm_dtype(), at::kBFloat16);
  EXPECT_EQ(bf16.accumulation_dtype(), at::kFloat);
}

TEST(ConfigPrecision, DtypesAreReadInEverySpelling) {
  const Config config = read(R"({"bf16": {"enabled": true},
      "communication_data_type": "float32",
      "data_types": {"grad_accum_dtype": "bfloat16", "param_dtype": "bf16",
                     "buffer_dtype": "half"}})");
  EXPECT_EQ(config.comm_dtype(), at::kFloat);
  EXPECT_EQ(config.accumulation_dtype(), at::kBFloat16);
  EXPECT_EQ(config.data_types.param_dtype, at::kBFloat16);
  EXPECT_EQ(config.data_types.buffer_dtype, at::kHalf);
  EXPECT_EQ(read(R"({"communication_data_type": null})").comm_dtype(),
            at::kFloat);
  for (const char* value : {"\"fp64\"", "\"int8\"", "16", "true"}) {
    EXPECT_THAT(
        error_of("{\"communication_data_type\": " + std::string(value) + "}"),
        HasSubstr("expected fp32, fp16 or bf16 but found"))
        << value;
  }
}

TEST(ConfigPrecision, ParamDtypeMustMatchTheMode) {
  EXPECT_THAT(error_of(R"({"data_types": {"param_dtype": "bf16"}})"),
              HasSubstr("data_types.param_dtype: expected fp32, which "
                        "fp16.enabled and bf16.enabled choose, but found "
                        "bf16"));
}

TEST(ConfigTopLevel, DefaultsAreDeepSpeeds) {
  const Config config = read("{}");
  EXPECT_FALSE(config.train_batch_size.has_value());
  EXPECT_FALSE(config.train_micro_batch_size_per_gpu.has_value());
  EXPECT_FALSE(config.gradient_accumulation_steps.has_value());
  EXPECT_EQ(config.gradient_clipping, 1.0);
  EXPECT_FALSE(config.prescale_gradients);
  EXPECT_EQ(config.gradient_predivide_factor, 1.0);
  EXPECT_EQ(config.gradient_allreduce_op, GradientReduceOp::kMean);
  EXPECT_FALSE(config.zero_allow_untested_optimizer);
  EXPECT_TRUE(config.zero_force_ds_cpu_optimizer);
  EXPECT_TRUE(config.managed_gradient_accumulation);
  EXPECT_FALSE(config.use_data_before_expert_parallelism);
  EXPECT_FALSE(config.data_parallel_size.has_value());
  EXPECT_EQ(config.sequence_parallel_size, 1);
  EXPECT_EQ(config.tensor_parallel_size, 1);
  EXPECT_EQ(config.expert_parallel_size, 1);
  EXPECT_FALSE(config.steps_per_print.has_value());
  EXPECT_FALSE(config.disable_allgather);
  EXPECT_FALSE(config.dump_state);
  EXPECT_FALSE(config.wall_clock_breakdown);
  EXPECT_FALSE(config.memory_breakdown);
  EXPECT_FALSE(config.dataloader_drop_last);
  EXPECT_EQ(config.seq_parallel_communication_data_type, at::kFloat);
  EXPECT_EQ(config.checkpoint.tag_validation, TagValidation::kWarn);
  EXPECT_FALSE(config.checkpoint.load_universal);
  EXPECT_FALSE(config.checkpoint.use_node_local_storage);
  EXPECT_FALSE(config.checkpoint.parallel_write.pipeline_stage);
  EXPECT_FALSE(config.optimizer.has_value());
  EXPECT_FALSE(config.scheduler.has_value());
  EXPECT_THAT(config.notes, IsEmpty());
}

TEST(ConfigTopLevel, ReduceOpIsReadInAnyCase) {
  EXPECT_EQ(read(R"({"gradient_allreduce_op": "SUM"})").gradient_allreduce_op,
            GradientReduceOp::kSum);
  EXPECT_EQ(read(R"({"gradient_allreduce_op": "Mean"})").gradient_allreduce_op,
            GradientReduceOp::kMean);
  EXPECT_THAT(error_of(R"({"gradient_allreduce_op": "max"})"),
              HasSubstr("expected mean or sum but found the text \"max\""));
  EXPECT_THAT(error_of(R"({"gradient_allreduce_op": "sum",
                           "prescale_gradients": true})"),
              HasSubstr("gradient_allreduce_op: expected mean"));
}

TEST(ConfigTopLevel, ScalingIsHonouredAtEveryStage) {
  for (int stage = 0; stage <= 2; ++stage) {
    const Config config = read(
        "{\"prescale_gradients\": true, \"gradient_predivide_factor\": 2,"
        "\"zero_optimization\": {\"stage\": " +
        std::to_string(stage) + ", \"reduce_scatter\": true}}");
    EXPECT_TRUE(config.prescale_gradients);
    EXPECT_EQ(config.gradient_predivide_factor, 2);
    EXPECT_THAT(config.notes, IsEmpty());
  }
  EXPECT_THAT(error_of(R"({"gradient_predivide_factor": 0})"),
              HasSubstr("a number above 0"));
  EXPECT_THAT(error_of(R"({"gradient_clipping": -1})"),
              HasSubstr("a number of at least 0"));
}

TEST(ConfigTopLevel, SizesOfProcessGroupsAreRead) {
  const Config config = read(R"({"data_parallel_size": 2,
      "sequence_parallel_size": 4, "tensor_parallel_size": 8,
      "expert_parallel_size": 16, "use_data_before_expert_parallelism": true,
      "seq_parallel_communication_data_type": "bf16"})");
  EXPECT_EQ(config.data_parallel_size, 2);
  EXPECT_EQ(config.sequence_parallel_size, 4);
  EXPECT_EQ(config.tensor_parallel_size, 8);
  EXPECT_EQ(config.expert_parallel_size, 16);
  EXPECT_TRUE(config.use_data_before_expert_parallelism);
  EXPECT_EQ(config.seq_parallel_communication_data_type, at::kBFloat16);
  EXPECT_THAT(config.notes, IsEmpty());
  for (const char* key : {"data_parallel_size", "sequence_parallel_size",
                          "tensor_parallel_size", "expert_parallel_size"}) {
    EXPECT_THAT(error_of("{\"" + std::string(key) + "\": 0}"),
                HasSubstr(std::string(key) +
                          ": expected an integer of at least 1 but found 0"));
  }
  EXPECT_THAT(missing(R"({"tensor_parallel": {"autotp_size": 2}})"),
              HasSubstr("use tensor_parallel_size"));
  EXPECT_THAT(error_of(R"({"seq_parallel_communication_data_type": "fp64"})"),
              HasSubstr("expected fp32, fp16 or bf16 but found"));
}

TEST(ConfigTopLevel, UnknownKeysAreErrors) {
  EXPECT_EQ(error_of(R"({"gradient_clipp1ng": 1})"),
            "configuration: 1 problem\n  gradient_clipp1ng: unknown key; did "
            "you mean gradient_clipping?");
  EXPECT_THAT(error_of(R"({"stage": 2})"),
              HasSubstr("did you mean zero_optimization.stage?"));
  EXPECT_THAT(error_of(R"({"zero_optimization": {"gradient_clipping": 2}})"),
              HasSubstr("did you mean gradient_clipping?"));
}

TEST(ConfigTopLevel, DuplicateKeysAreErrors) {
  EXPECT_THAT(error_of(R"({"zero_optimization": {"stage": 1, "stage": 2}})"),
              HasSubstr("zero_optimization.stage: given twice"));
}

TEST(ConfigTopLevel, ReadsFilesAndBase64) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("nfold_config_test_" + std::to_string(::getpid()));
  std::ofstream(path) << "// a file\n{\"steps_per_print\": 10}";
  EXPECT_EQ(Config::from_json_file(path.string()).steps_per_print, 10);
  std::ofstream(path) << "{\"steps_per_printt\": 10}";
  try {
    Config::from_json_file(path.string());
    ADD_FAILURE() << "the key is misspelt";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(message_of(error), HasSubstr(path.string()));
  }
  std::filesystem::remove(path);
  EXPECT_THROW(Config::from_json_file(path.string()), IoError);

  EXPECT_EQ(read("\xef\xbb\xbf{\"steps_per_print\": 10}").steps_per_print, 10);
  // {"steps_per_print": 10}
  EXPECT_EQ(read("eyJzdGVwc19wZXJfcHJpbnQiOiAxMH0=").steps_per_print, 10);
  EXPECT_THAT(error_of("zero2.json"), HasSubstr("but found neither"));
  EXPECT_THAT(error_of("bm90IGpzb24="), HasSubstr("not readable as JSON"));
  EXPECT_THAT(error_of(""), HasSubstr("not readable as JSON"));
}

TEST(ConfigTopLevel, RemovedFeaturesAreErrorsUnlessSwitchedOff) {
  for (const char* key :
       {"nebula", "compression_training", "amp", "quantize_training",
        "sparse_attention", "eigenvalue", "elasticity", "curriculum_learning",
        "progressive_layer_drop", "data_efficiency"}) {
    const std::string name = "{\"" + std::string(key) + "\": ";
    EXPECT_THAT(missing(name + "{\"enabled\": true}}"),
                HasSubstr(std::string(key) + ": "))
        << key;
    EXPECT_NO_THROW(read(name + "{\"enabled\": false}}")) << key;
    EXPECT_NO_THROW(read(name + "null}")) << key;
  }
  for (const char* key : {"sparse_gradients", "graph_harvesting"}) {
    EXPECT_NE(missing("{\"" + std::string(key) + "\": true}"), "") << key;
    EXPECT_NO_THROW(read("{\"" + std::string(key) + "\": false}")) << key;
  }
}

TEST(ConfigTopLevel, OtherSectionsOfDeepSpeedAreNoted) {
  const Config config = read(R"({"flops_profiler": {"enabled": true, "x": 1},
                                 "wandb": {"enabled": false}, "comet": {}})");
  EXPECT_THAT(config.notes, ElementsAre(HasSubstr("flops_profiler: no effect"),
                                        HasSubstr("wandb: no effect"),
                                        HasSubstr("comet: no effect")));
}

TEST(ConfigTopLevel, SubsumedKeysAreNotedWithTheReason) {
  const Config config = read_zero(
      "\"contiguous_gradients\": true, \"round_robin_gradients\": true");
  EXPECT_THAT(config.notes,
              ElementsAre("zero_optimization.contiguous_gradients: not needed "
                          "here: gradients always go to contiguous flat "
                          "buckets",
                          HasSubstr("every unit is split evenly over the "
                                    "ranks")));
}

}  // namespace
}  // namespace nfold
