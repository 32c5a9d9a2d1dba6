// Behaviour of the JSON keys, section by section.
#include "nfold/config.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "config/config_key.h"
#include "nfold/errors.h"
#include "nfold/strict_json.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::ordered_json;

Config read(std::string_view text) { return Config::from_json_text(text); }

Config read_zero(std::string_view fields) {
  return read("{\"zero_optimization\": {" + std::string(fields) + "}}");
}

// The text of the error of type `Error`; empty if there is none.
template <typename Error = c10::ValueError>
std::string error_of(std::string_view text) {
  try {
    read(text);
  } catch (const Error& error) {
    return message_of(error);
  }
  return "";
}

std::string zero_error(std::string_view fields) {
  return error_of("{\"zero_optimization\": {" + std::string(fields) + "}}");
}

std::string missing(std::string_view text) {
  return error_of<c10::NotImplementedError>(text);
}

// A text with one key, nested as its path says.
std::string text_with(std::string_view path, const Json& value) {
  Json node = value;
  std::string rest(path);
  while (!rest.empty()) {
    const std::size_t dot = rest.rfind('.');
    Json outer = Json::object();
    outer[rest.substr(dot == std::string::npos ? 0 : dot + 1)] = node;
    node = outer;
    rest = dot == std::string::npos ? "" : rest.substr(0, dot);
  }
  return node.dump();
}

TEST(ConfigZero, DefaultsAreDeepSpeeds) {
  const ZeroConfig zero = read("{}").zero_optimization;
  EXPECT_EQ(zero.stage, 0);
  EXPECT_TRUE(zero.contiguous_gradients);
  EXPECT_TRUE(zero.reduce_scatter);
  EXPECT_EQ(zero.reduce_bucket_size, 500'000'000);
  EXPECT_TRUE(zero.use_multi_rank_bucket_allreduce);
  EXPECT_TRUE(zero.allgather_partitions);
  EXPECT_EQ(zero.allgather_bucket_size, 500'000'000);
  EXPECT_FALSE(zero.overlap_comm);
  EXPECT_TRUE(zero.load_from_fp32_weights);
  EXPECT_FALSE(zero.elastic_checkpoint);
  EXPECT_EQ(zero.offload_param.device, OffloadDevice::kNone);
  EXPECT_EQ(zero.offload_optimizer.device, OffloadDevice::kNone);
  EXPECT_EQ(zero.sub_group_size, 1'000'000'000);
  EXPECT_EQ(zero.stage3_prefetch_bucket_size, 50'000'000);
  EXPECT_EQ(zero.stage3_param_persistence_threshold, 100'000);
  EXPECT_EQ(zero.stage3_model_persistence_threshold,
            std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(zero.stage3_max_live_parameters, 1'000'000'000);
  EXPECT_EQ(zero.stage3_max_reuse_distance, 1'000'000'000);
  EXPECT_FALSE(zero.stage3_gather_16bit_weights_on_model_save);
  EXPECT_EQ(zero.stage3_module_granularity_threshold, 0);
  EXPECT_FALSE(zero.stage3_use_all_reduce_for_fetch_params);
  EXPECT_FALSE(zero.stage3_allgather_sequential);
  EXPECT_TRUE(zero.ignore_unused_parameters);
  EXPECT_FALSE(zero.legacy_stage1);
  EXPECT_FALSE(zero.round_robin_gradients);
  EXPECT_EQ(zero.zero_hpz_partition_size, 1);
  EXPECT_FALSE(zero.zero_quantized_weights);
  EXPECT_FALSE(zero.zero_quantized_nontrainable_weights);
  EXPECT_FALSE(zero.zero_quantized_gradients);
  EXPECT_TRUE(zero.memory_efficient_linear);
  EXPECT_FALSE(zero.pipeline_loading_checkpoint);
  EXPECT_TRUE(zero.override_module_apply);
  EXPECT_FALSE(zero.log_trace_cache_warnings);
  EXPECT_FALSE(zero.enable_sanity_checks);
  EXPECT_FALSE(zero.save_muon_momentum_buffer_in_memory);
  EXPECT_TRUE(zero.compute_grad_norm);
  EXPECT_FALSE(zero.parameter_alignment);
  EXPECT_EQ(zero.mics_shard_size, -1);
  EXPECT_FALSE(zero.mics_hierarchical_params_gather);
  EXPECT_FALSE(zero.reduce_at_boundary);
}

TEST(ConfigZero, OffloadAndFileDefaultsAreDeepSpeeds) {
  const Config config = read("{}");
  const auto& param = config.zero_optimization.offload_param;
  EXPECT_EQ(param.buffer_count, 5);
  EXPECT_EQ(param.buffer_size, 100'000'000);
  EXPECT_EQ(param.max_in_cpu, 1'000'000'000);
  EXPECT_TRUE(param.pin_memory);
  EXPECT_FALSE(param.nvme_path.has_value());
  const auto& optimizer = config.zero_optimization.offload_optimizer;
  EXPECT_EQ(optimizer.buffer_count, 4);
  EXPECT_TRUE(optimizer.pin_memory);
  EXPECT_FALSE(optimizer.pipeline_read);
  EXPECT_FALSE(optimizer.pipeline_write);
  EXPECT_FALSE(optimizer.fast_init);
  EXPECT_EQ(optimizer.ratio, 1.0);
  EXPECT_FALSE(optimizer.super_offload);
  EXPECT_EQ(optimizer.cpuadam_cores_perc, 0.8);
  EXPECT_EQ(config.aio.block_size, 1'048'576);
  EXPECT_EQ(config.aio.queue_depth, 8);
  EXPECT_EQ(config.aio.intra_op_parallelism, 1);
  EXPECT_FALSE(config.aio.single_submit);
  EXPECT_TRUE(config.aio.overlap_events);
  EXPECT_FALSE(config.aio.use_gds);
}

TEST(ConfigZero, StageIsFrom0To3) {
  EXPECT_EQ(read_zero("\"stage\": 2").zero_optimization.stage, 2);
  EXPECT_EQ(zero_error("\"stage\": 4"),
            "configuration: 1 problem\n  zero_optimization.stage: expected an "
            "integer from 0 to 3 but found 4");
  EXPECT_THAT(zero_error("\"stage\": -1"), HasSubstr("found -1"));
  EXPECT_THAT(zero_error("\"stage\": 1.5"), HasSubstr("found 1.5"));
  EXPECT_THAT(missing(R"({"zero_optimization": {"stage": 3}})"),
              HasSubstr("stage 3 is not available in this version; use "
                        "stage 2"));
}

TEST(ConfigZero, IntegersMayBeWrittenAsFloats) {
  const Config config =
      read_zero("\"reduce_bucket_size\": 1e6, \"allgather_bucket_size\": 5e8");
  EXPECT_EQ(config.zero_optimization.reduce_bucket_size, 1'000'000);
  EXPECT_EQ(config.zero_optimization.allgather_bucket_size, 500'000'000);
  EXPECT_THAT(zero_error("\"reduce_bucket_size\": 1.5"),
              HasSubstr("expected an integer of at least 1 but found 1.5"));
  EXPECT_THAT(zero_error("\"reduce_bucket_size\": 0"), HasSubstr("found 0"));
}

// DeepSpeed asks for a multiple of 2 on behalf of NCCL's alignment.
TEST(ConfigZero, AllGatherBucketMayBeOdd) {
  EXPECT_EQ(read_zero("\"allgather_bucket_size\": 1001")
                .zero_optimization.allgather_bucket_size,
            1001);
}

TEST(ConfigZero, UnsetOverlapFollowsTheStage) {
  EXPECT_FALSE(read_zero("\"stage\": 2").zero_optimization.overlap_comm);
  EXPECT_FALSE(read_zero("\"stage\": 2, \"overlap_comm\": null")
                   .zero_optimization.overlap_comm);
  EXPECT_FALSE(read_zero("\"stage\": 2, \"overlap_comm\": \"auto\"")
                   .zero_optimization.overlap_comm);
  EXPECT_TRUE(read_zero("\"stage\": 2, \"overlap_comm\": true")
                  .zero_optimization.overlap_comm);
}

TEST(ConfigZero, Stage3KeysHaveTwoNames) {
  const ZeroConfig plain =
      read_zero(R"("prefetch_bucket_size": 11, "max_live_parameters": 12,
                   "max_reuse_distance": 13,
                   "param_persistence_threshold": 14,
                   "model_persistence_threshold": 15,
                   "gather_16bit_weights_on_model_save": true,
                   "module_granularity_threshold": 16,
                   "use_all_reduce_for_fetch_params": true,
                   "allgather_sequential": true)")
          .zero_optimization;
  EXPECT_EQ(plain.stage3_prefetch_bucket_size, 11);
  EXPECT_EQ(plain.stage3_max_live_parameters, 12);
  EXPECT_EQ(plain.stage3_max_reuse_distance, 13);
  EXPECT_EQ(plain.stage3_param_persistence_threshold, 14);
  EXPECT_EQ(plain.stage3_model_persistence_threshold, 15);
  EXPECT_TRUE(plain.stage3_gather_16bit_weights_on_model_save);
  EXPECT_EQ(plain.stage3_module_granularity_threshold, 16);
  EXPECT_TRUE(plain.stage3_use_all_reduce_for_fetch_params);
  EXPECT_TRUE(plain.stage3_allgather_sequential);
  EXPECT_EQ(read_zero("\"stage3_prefetch_bucket_size\": 5e6")
                .zero_optimization.stage3_prefetch_bucket_size,
            5'000'000);
  EXPECT_THAT(zero_error(R"("prefetch_bucket_size": 1,
                            "stage3_prefetch_bucket_size": 1)"),
              HasSubstr("zero_optimization.prefetch_bucket_size: is another "
                        "name of stage3_prefetch_bucket_size"));
}

TEST(ConfigZero, LeafModuleTakesATextOrAListWithoutRepeats) {
  const auto leaf = read_zero(R"("leaf_module": {"classes": "Block",
      "names": ["a", "b", "a"]})")
                        .zero_optimization.leaf_module;
  EXPECT_THAT(leaf.classes, ElementsAre("Block"));
  EXPECT_THAT(leaf.names, ElementsAre("a", "b"));
  EXPECT_THAT(leaf.name_suffixes, IsEmpty());
}

TEST(ConfigZero, BooleanFormMeansStage1) {
  const Config on = read(R"({"zero_optimization": true})");
  EXPECT_EQ(on.zero_optimization.stage, 1);
  EXPECT_EQ(on.zero_optimization.allgather_bucket_size, 500'000'000);
  EXPECT_THAT(on.notes, Contains(HasSubstr("zero_optimization: deprecated")));
  const Config sized =
      read(R"({"zero_optimization": true, "allgather_size": 1e6})");
  EXPECT_EQ(sized.zero_optimization.allgather_bucket_size, 1'000'000);
  EXPECT_EQ(read(R"({"zero_optimization": false})").zero_optimization.stage, 0);
  EXPECT_THAT(error_of(R"({"allgather_size": 1000})"),
              HasSubstr("zero_optimization.allgather_bucket_size"));
}

TEST(ConfigZero, DeprecatedOffloadSwitchesAreReadAsSections) {
  EXPECT_THAT(missing(R"({"zero_optimization": {"cpu_offload": true}})"),
              HasSubstr("zero_optimization.offload_optimizer.device: "
                        "offloading is not available"));
  EXPECT_THAT(missing(R"({"zero_optimization": {"cpu_offload_param": true}})"),
              HasSubstr("zero_optimization.offload_param.device"));
  const Config off =
      read_zero(R"("cpu_offload": false, "cpu_offload_use_pin_memory": true)");
  EXPECT_EQ(off.zero_optimization.offload_optimizer.device,
            OffloadDevice::kNone);
  EXPECT_THAT(off.notes,
              ElementsAre(HasSubstr("read as offload_optimizer with device "
                                    "none"),
                          HasSubstr("cpu_offload_use_pin_memory")));
  EXPECT_THAT(zero_error(R"("cpu_offload": true,
                            "offload_optimizer": {"device": "none"})"),
              HasSubstr("cpu_offload: is the older form of "
                        "offload_optimizer; give one of the two"));
  EXPECT_THAT(zero_error(R"("cpu_offload_param": true,
                            "offload_param": {"device": "none"})"),
              HasSubstr("is the older form of offload_param"));
}

TEST(ConfigZero, DeprecatedGatherKeyIsRead) {
  const Config config =
      read_zero("\"stage3_gather_fp16_weights_on_model_save\": true");
  EXPECT_TRUE(
      config.zero_optimization.stage3_gather_16bit_weights_on_model_save);
  EXPECT_THAT(config.notes,
              Contains(HasSubstr("deprecated; read as "
                                 "stage3_gather_16bit_weights_on_model_save")));
  EXPECT_THAT(zero_error(R"("stage3_gather_fp16_weights_on_model_save": true,
                            "stage3_gather_16bit_weights_on_model_save": true)"),
              HasSubstr("give one of the two"));
}

TEST(ConfigZero, PartialOffloadNeedsStage3) {
  EXPECT_THAT(zero_error(R"("stage": 2,
                            "offload_optimizer": {"ratio": 0.5})"),
              HasSubstr("offloading a part needs stage 3"));
  EXPECT_THAT(zero_error("\"offload_optimizer\": {\"ratio\": 1.5}"),
              HasSubstr("a number from 0 to 1 but found 1.5"));
}

TEST(ConfigZero, OffloadSectionsWithoutADeviceAreAccepted) {
  EXPECT_NO_THROW(read_zero(R"("offload_param": null,
      "offload_optimizer": {"device": "none", "pin_memory": true,
                            "buffer_count": 4, "nvme_path": null})"));
  EXPECT_NO_THROW(read_zero("\"offload_optimizer\": {\"device\": null}"));
  EXPECT_THAT(zero_error("\"offload_param\": {\"device\": \"disk\"}"),
              HasSubstr("expected none, cpu or nvme but found the text "
                        "\"disk\""));
}

TEST(ConfigZero, LaterFeaturesNameWhatToUseInstead) {
  const char* const fields[] = {
      R"("offload_param": {"device": "cpu"})",
      R"("offload_optimizer": {"device": "nvme", "nvme_path": "/x"})",
      R"("zero_hpz_partition_size": 2)",
      R"("zero_quantized_weights": true)",
      R"("zero_quantized_nontrainable_weights": true)",
      R"("zero_quantized_gradients": true)",
      R"("zeropp_loco_param": {"err_beta": 0.8})",
      R"("mics_shard_size": 2)",
      R"("mics_hierarchical_params_gather": true)",
      R"("zenflow": {"topk_ratio": 0.1})",
      R"("legacy_stage1": true)",
  };
  for (const char* field : fields) {
    const std::string text =
        "{\"zero_optimization\": {" + std::string(field) + "}}";
    EXPECT_THAT(missing(text), AllOf(HasSubstr("1 problem\n"),
                                     testing::AnyOf(HasSubstr("; use "),
                                                    HasSubstr("; remove it"))))
        << field;
  }
}

TEST(ConfigZero, ReduceAtBoundaryNeedsStage0Or1) {
  EXPECT_TRUE(read_zero("\"stage\": 1, \"reduce_at_boundary\": true")
                  .zero_optimization.reduce_at_boundary);
  EXPECT_TRUE(read_zero("\"stage\": 0, \"reduce_at_boundary\": true")
                  .zero_optimization.reduce_at_boundary);
  EXPECT_THAT(zero_error("\"stage\": 2, \"reduce_at_boundary\": true"),
              HasSubstr("use stage 0 or 1"));
}

TEST(ConfigZero, SkippingTheNormNeedsStage1Or2AndNoClipping) {
  EXPECT_FALSE(read(R"({"gradient_clipping": 0, "zero_optimization":
                        {"stage": 1, "compute_grad_norm": false}})")
                   .zero_optimization.compute_grad_norm);
  EXPECT_THAT(zero_error("\"stage\": 0, \"compute_grad_norm\": false"),
              AllOf(HasSubstr("needs gradient_clipping 0 but found 1"),
                    HasSubstr("needs stage 1 or 2 but found 0")));
}

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

TEST(ConfigAuto, IsTakenAsTheDefaultAndNoted) {
  const Config config = read(R"({"train_batch_size": "auto",
      "train_micro_batch_size_per_gpu": 4, "gradient_clipping": "auto",
      "bf16": {"enabled": "auto"},
      "optimizer": {"type": "AdamW", "params": {"lr": "auto",
                    "betas": "auto"}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
      "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})");
  EXPECT_FALSE(config.train_batch_size.has_value());
  EXPECT_EQ(config.gradient_clipping, 1.0);
  EXPECT_FALSE(config.bf16.enabled);
  EXPECT_EQ(config.optimizer->params.lr, 1e-3);
  EXPECT_EQ(config.zero_optimization.reduce_bucket_size, 500'000'000);
  EXPECT_THAT(config.notes, SizeIs(7));
  EXPECT_THAT(config.notes,
              Contains("optimizer.params.lr: \"auto\" is taken as the "
                       "default"));
  EXPECT_THAT(error_of(R"({"scheduler": {"type": "WarmupDecayLR",
                           "params": {"total_num_steps": "auto"}}})"),
              HasSubstr("total_num_steps: is required"));
}

// The shape of the files that go around with trainers built on DeepSpeed.
TEST(ConfigAuto, ATypicalTrainersFileIsRead) {
  const Config config = read(R"({
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000,
             "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto",
                  "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto",
                  "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 2,
      "offload_optimizer": {"device": "none", "pin_memory": true},
      "allgather_partitions": true, "allgather_bucket_size": 2e8,
      "overlap_comm": true, "reduce_scatter": true,
      "reduce_bucket_size": 2e8, "contiguous_gradients": true},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "steps_per_print": 2000, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false})");
  EXPECT_EQ(config.zero_optimization.stage, 2);
  EXPECT_EQ(config.zero_optimization.reduce_bucket_size, 200'000'000);
  EXPECT_TRUE(config.zero_optimization.overlap_comm);
  EXPECT_EQ(config.param_dtype(), at::kFloat);
  EXPECT_EQ(config.optimizer->type, OptimizerType::kAdamW);
}

TEST(ConfigErrors, AreReportedAllAtOnce) {
  EXPECT_EQ(
      error_of(R"({"fp16": {"enabled": "true"}, "bf16": {"enabld": true},
                   "zero_optimization": {"stage": 4, "overlap_com": true,
                                         "mics_shard_size": 2},
                   "steps_per_print": 0, "train_batch_sze": 3})"),
      "configuration: 7 problems\n"
      "  steps_per_print: expected an integer of at least 1 but found 0\n"
      "  fp16.enabled: expected true or false but found the text \"true\"; "
      "remove the quotes\n"
      "  zero_optimization.stage: expected an integer from 0 to 3 but found 4\n"
      "  train_batch_sze: unknown key; did you mean train_batch_size?\n"
      "  bf16.enabld: unknown key; did you mean enabled?\n"
      "  zero_optimization.overlap_com: unknown key; did you mean "
      "overlap_comm?\n"
      "  zero_optimization.mics_shard_size: shard groups smaller than the "
      "world are not available in this version; use -1");
}

// The typed sections that a path runs through, so that only the misspelt key
// is wrong.
std::string text_for(const ConfigKey& key, std::string_view path,
                     const Json& value) {
  Json root = Json::parse(text_with(path, value));
  const auto first_type = [&](auto type, std::string_view section) {
    const auto names = names_of(type);
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!(key.owners & (1U << i))) continue;
      root[std::string(section)]["type"] = std::string(names[i]);
      return;
    }
  };
  if (path.starts_with("optimizer.")) {
    first_type(OptimizerType{}, "optimizer");
  } else if (path.starts_with("scheduler.")) {
    first_type(SchedulerType{}, "scheduler");
  }
  return root.dump();
}

TEST(ConfigKeys, EveryKeyMisspeltByOneLetterIsNamed) {
  for (const ConfigKey& key : config_keys()) {
    std::string leaf(leaf_of(key.path));
    if (leaf == "type" || leaf == "$schema") continue;
    leaf[leaf.size() / 2] = 'Q';
    std::string path(section_of(key.path));
    path += path.empty() ? leaf : "." + leaf;
    const std::string error = error_of(text_for(key, path, 1));
    EXPECT_THAT(error, HasSubstr(path + ": unknown key; did you mean "));
    EXPECT_THAT(error, HasSubstr(std::string(leaf_of(key.path))));
  }
}

TEST(ConfigKeys, EveryPathIsUniqueAndDescribed) {
  std::set<std::string_view> paths;
  for (const ConfigKey& key : config_keys()) {
    EXPECT_TRUE(paths.insert(key.path).second) << key.path;
    EXPECT_THAT(key.effect, Not(IsEmpty())) << key.path;
    EXPECT_FALSE(key.effect.ends_with(".")) << key.path;
  }
  for (const Unavailable& row : unavailable_keys()) {
    EXPECT_TRUE(paths.contains(row.path)) << row.path;
    EXPECT_THAT(row.text, HasSubstr("; ")) << row.path;
  }
  for (const KeyAlias& alias : key_aliases()) {
    EXPECT_TRUE(paths.contains(alias.path)) << alias.path;
  }
}

// A value that differs from the default and fits, for fields of every kind.
std::optional<Json> other_value(const Config& config, const ConfigKey& key) {
  const Json value = Json::parse(value_text(config, key));
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number_float()) {
    const double half = value.get<double>() / 2 + 0.125;
    return key.range.holds(half) ? std::optional<Json>(half) : std::nullopt;
  }
  if (value.is_number()) {
    for (const std::int64_t change : {1, -1}) {
      const double other = value.get<double>() + static_cast<double>(change);
      if (std::abs(other) < 1e15 && key.range.holds(other)) {
        return value.get<std::int64_t>() + change;
      }
    }
    return 5;
  }
  if (value.is_array() && value.empty()) return Json::array({"x"});
  if (value.is_array()) return Json::array({0.25, 0.5});
  const std::string type = type_text(key);
  if (type == "text") return "other";
  if (type == "fp32, fp16 or bf16") return "bf16";
  if (value.is_null()) return 5;
  return std::nullopt;  // choices, which have tests of their own
}

TEST(ConfigKeys, EveryKeyIsStoredAndComesBackFromTheEffectiveText) {
  int num_read = 0;
  for (const ConfigKey& key : config_keys()) {
    Config config;
    if (key.path.starts_with("optimizer.")) {
      config = read(text_for(key, "optimizer.params", Json::object()));
    } else if (key.path.starts_with("scheduler.")) {
      // Required keys of the section would be missing.
      continue;
    }
    if (!has_key(config, key)) continue;
    const auto value = other_value(config, key);
    if (!value) continue;
    try {
      config = read(text_for(key, key.path, *value));
    } catch (const c10::NotImplementedError&) {
      continue;
    } catch (const c10::ValueError& error) {
      // Contradicts the defaults of other keys.
      EXPECT_THAT(message_of(error),
                  AllOf(HasSubstr("  " + std::string(key.path) + ": "),
                        Not(HasSubstr("unknown"))));
      continue;
    }
    ++num_read;
    EXPECT_EQ(Json::parse(value_text(config, key)), *value) << key.path;
    const std::string text = config.to_json_text();
    const Config again = read(text);
    EXPECT_EQ(value_text(again, key), value_text(config, key)) << key.path;
    EXPECT_EQ(again.to_json_text(), text) << key.path;
  }
  EXPECT_GT(num_read, 80);
}

TEST(ConfigText, RoundTripKeepsEveryValueAndAddsNoNotes) {
  const Config config = read(R"({"train_batch_size": 32,
      "gradient_clipping": 0.1, "communication_data_type": "fp32",
      "gradient_allreduce_op": "sum", "steps_per_print": 7,
      "bf16": {"enabled": true},
      "data_types": {"grad_accum_dtype": "bf16"},
      "optimizer": {"type": "sgd", "params": {"lr": 0.1, "momentum": 0.9}},
      "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5,
                    "cycle_max_lr": 0.3, "cycle_second_step_size": 9}},
      "zero_optimization": {"stage": 1, "overlap_comm": true,
                            "reduce_bucket_size": 5e7}})");
  const Config again = read(config.to_json_text());
  EXPECT_EQ(again.to_json_text(), config.to_json_text());
  EXPECT_THAT(again.notes, IsEmpty());
  for (const ConfigKey& key : config_keys()) {
    ASSERT_EQ(has_key(again, key), has_key(config, key)) << key.path;
    if (has_key(config, key)) {
      EXPECT_EQ(value_text(again, key), value_text(config, key)) << key.path;
    }
  }
}

TEST(ConfigText, DefaultRoundTrips) {
  const Config config;
  EXPECT_EQ(read(config.to_json_text()).to_json_text(), config.to_json_text());
}

TEST(ConfigSections, EngineSectionOfALargerFileReportsItsPath) {
  JsonDocument document = JsonDocument::from_text(
      R"({"train": {"steps": 0}, "engine": {"fp16": {"enabled": true},
          "bf16": {"enabled": true}, "zero_optimizaton": {}, "stage": 1}})",
      "run.json");
  document.set("engine.steps_per_print=-1");
  JsonObject root = document.root();
  std::int64_t steps = 1;
  root.object("train").read("steps", steps, {.least = 1});
  Config::from_json_object(root.object("engine"));
  root.finish();
  try {
    document.raise_if_violated();
    FAIL() << "the document has violations";
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(message_of(error),
              "run.json: 5 problems\n"
              "  train.steps: expected an integer of at least 1 but found 0\n"
              "  engine.steps_per_print: expected an integer of at least 1 "
              "but found -1\n"
              "  engine.zero_optimizaton: unknown key; did you mean "
              "zero_optimization?\n"
              "  engine.stage: unknown key; did you mean "
              "engine.zero_optimization.stage?\n"
              "  engine.bf16.enabled: expected false, as fp16.enabled is true; "
              "choose one");
  }
}

TEST(ConfigValidate, ChecksWhatWasFilledInByHand) {
  Config config;
  EXPECT_NO_THROW(config.validate());
  config.zero_optimization.stage = 3;
  EXPECT_THROW(config.validate(), c10::NotImplementedError);
  config.zero_optimization.stage = 7;
  config.gradient_clipping = std::numeric_limits<double>::quiet_NaN();
  config.communication_data_type = at::kDouble;
  config.optimizer.emplace().params.betas[1] = 1.0;
  try {
    config.validate();
    FAIL() << "the configuration is wrong";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(message_of(error),
                AllOf(HasSubstr("4 problems"),
                      HasSubstr("zero_optimization.stage: expected integer "
                                "from 0 to 3 but found 7"),
                      HasSubstr("gradient_clipping"),
                      HasSubstr("communication_data_type: expected fp32, fp16 "
                                "or bf16 but found Double"),
                      HasSubstr("optimizer.params.betas")));
  }
}

}  // namespace
}  // namespace nfold
