// Keys of zero_optimization.
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "config/config_test_text.h"
#include "nfold/config.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ConfigZero, DefaultsAreDeepSpeeds) {
  const ZeroConfig zero = read("{}").zero_optimization;
  EXPECT_EQ(zero.stage, 0);
  EXPECT_TRUE(zero.contiguous_gradients);
  EXPECT_TRUE(zero.reduce_scatter);
  EXPECT_EQ(zero.reduce_bucket_size, 500'000'000);
  EXPECT_TRUE(zero.use_multi_rank_bucket_allreduce);
  EXPECT_TRUE(zero.allgather_partitions);
  EXPECT_EQ(zero.allgather_bucket_size, 500'000'000);
  EXPECT_EQ(zero.overlap_comm, std::nullopt);
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
  EXPECT_EQ(read_zero("\"stage\": 3").zero_optimization.stage, 3);
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

TEST(ConfigZero, OverlapMayBeUnset) {
  const auto read = [](const std::string& pairs) {
    return read_zero(pairs).zero_optimization.overlap_comm;
  };
  EXPECT_EQ(read("\"stage\": 3"), std::nullopt);
  EXPECT_EQ(read("\"stage\": 3, \"overlap_comm\": null"), std::nullopt);
  EXPECT_EQ(read("\"stage\": 3, \"overlap_comm\": \"auto\""), std::nullopt);
  EXPECT_EQ(read("\"stage\": 2, \"overlap_comm\": true"), true);
  EXPECT_EQ(read("\"stage\": 3, \"overlap_comm\": false"), false);
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

TEST(ConfigZero, SecondaryShardsNeedStage3AndNoMics) {
  const Config config = read_zero(R"("stage": 3,
                                     "zero_hpz_partition_size": 4)");
  EXPECT_EQ(config.zero_optimization.zero_hpz_partition_size, 4);
  EXPECT_THAT(config.notes, IsEmpty());
  EXPECT_NO_THROW(read_zero(R"("stage": 2, "zero_hpz_partition_size": 1)"));
  EXPECT_THAT(zero_error(R"("stage": 2, "zero_hpz_partition_size": 4)"),
              HasSubstr("zero_hpz_partition_size: expected 1 at stage 2 but "
                        "found 4; secondary shards need stage 3"));
  EXPECT_THAT(zero_error(R"("stage": 3, "zero_hpz_partition_size": 4,
                            "mics_shard_size": 2)"),
              HasSubstr("zero_hpz_partition_size: expected 1 with "
                        "mics_shard_size 2 but found 4; a shard group is "
                        "already small: choose one of the two"));
  EXPECT_NO_THROW(read_zero(R"("stage": 3, "zero_hpz_partition_size": 1,
                               "mics_shard_size": 2)"));
  EXPECT_THAT(zero_error(R"("stage": 3, "zero_hpz_partition_size": 0)"),
              HasSubstr("expected an integer of at least 1 but found 0"));
}

TEST(ConfigZero, QuantizationNeedsStage3AndNoMics) {
  const Config config = read_zero(R"("stage": 3,
      "zero_quantized_weights": true, "zero_quantized_gradients": true,
      "zero_quantized_nontrainable_weights": true,
      "zero_hpz_partition_size": 2)");
  EXPECT_TRUE(config.zero_optimization.zero_quantized_weights);
  EXPECT_TRUE(config.zero_optimization.zero_quantized_nontrainable_weights);
  EXPECT_TRUE(config.zero_optimization.zero_quantized_gradients);
  EXPECT_FALSE(config.zero_optimization.zeropp_loco_param.is_enabled());
  EXPECT_THAT(config.notes, IsEmpty());
  for (const std::string key :
       {"zero_quantized_weights", "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients"}) {
    EXPECT_THAT(zero_error("\"stage\": 2, \"" + key + "\": true"),
                HasSubstr(key + ": expected false at stage 2; quantized "
                                "communication needs stage 3"));
    EXPECT_THAT(zero_error("\"stage\": 3, \"mics_shard_size\": 2, \"" + key +
                           "\": true"),
                HasSubstr(key + ": expected false with mics_shard_size 2"));
  }
  EXPECT_THAT(zero_error(R"("stage": 3, "zero_quantized_weights": true,
                            "stage3_use_all_reduce_for_fetch_params": true)"),
              HasSubstr("expected false with quantized weights"));
  EXPECT_THAT(zero_error(R"("stage": 3, "zero_quantized_gradients": true,
                            "reduce_scatter": false)"),
              HasSubstr("reduce_scatter: expected true with "
                        "zero_quantized_gradients"));
}

TEST(ConfigZero, ErrorFeedbackNeedsQuantizedGradients) {
  const auto loco = [](const std::string& param) {
    return R"("stage": 3, "zero_quantized_gradients": true,
              "zeropp_loco_param": )" +
           param;
  };
  const auto given = read_zero(loco(R"({"err_beta": 0.9, "reset_T": 64})"))
                         .zero_optimization.zeropp_loco_param;
  EXPECT_TRUE(given.is_enabled());
  EXPECT_EQ(given.err_beta, 0.9);
  EXPECT_EQ(given.reset_T, 64);
  for (const char* off : {"null", "{}"}) {
    EXPECT_FALSE(
        read_zero(loco(off)).zero_optimization.zeropp_loco_param.is_enabled());
  }
  EXPECT_THAT(zero_error(R"("stage": 3, "zeropp_loco_param":
                            {"err_beta": 0.8})"),
              HasSubstr("needs zero_quantized_gradients true"));
  EXPECT_THAT(zero_error(loco(R"({"err_beta": 1})")),
              HasSubstr("err_beta: expected a number from 0 and below 1"));
  EXPECT_THAT(zero_error(loco(R"({"reset_T": 0})")),
              HasSubstr("an integer of at least 1 but found 0"));
  EXPECT_THAT(zero_error(loco(R"({"err_bta": 1})")),
              HasSubstr("did you mean err_beta"));
}

TEST(ConfigZero, HierarchicalGatherNeedsAShardSize) {
  EXPECT_TRUE(read_zero(R"("stage": 3, "mics_shard_size": 4,
                           "mics_hierarchical_params_gather": true)")
                  .zero_optimization.mics_hierarchical_params_gather);
  EXPECT_THAT(zero_error(R"("stage": 3,
                            "mics_hierarchical_params_gather": true)"),
              HasSubstr("mics_hierarchical_params_gather: expected false as "
                        "mics_shard_size is -1"));
}

TEST(ConfigZero, MicsDoesNotGoWithExpertsButSecondaryShardsDo) {
  EXPECT_THAT(error_of(R"({"expert_parallel_size": 2, "zero_optimization":
                           {"stage": 3, "mics_shard_size": 4}})"),
              HasSubstr("zero_optimization.mics_shard_size: expected -1 with "
                        "expert_parallel_size 2 but found 4"));
  EXPECT_NO_THROW(read(R"({"expert_parallel_size": 2, "zero_optimization":
               {"stage": 3, "zero_hpz_partition_size": 4}})"));
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

}  // namespace
}  // namespace nfold
