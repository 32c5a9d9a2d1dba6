#include <limits>

#include "config/config_key.h"

namespace nfold {
namespace {

constexpr std::string_view kAnyUse =
    "any use of a parameter gathers it, so no module has to be a leaf";
constexpr std::string_view kOffload =
    "belongs to offloading, which this version lacks";

}  // namespace

std::vector<ConfigKey> zero_keys() {
  using enum KeyStatus;
  const JsonRange positive{.least = 1};
  const JsonRange not_negative{.least = 0};
  const JsonRange below_1{.least = 0, .most = 1, .most_is_open = true};
  const JsonRange fraction{.least = 0, .most = 1};
  return {
      {NFOLD_KEY(zero_optimization.stage),
       kHonoured,
       "0: nothing is sharded; 1: optimizer state; 2: gradients too; 3: "
       "parameters too",
       {.least = 0, .most = 3}},
      {NFOLD_KEY(zero_optimization.reduce_bucket_size), kHonoured,
       "elements per gradient bucket; a unit larger than this has a bucket of "
       "its own",
       positive},
      {NFOLD_KEY(zero_optimization.allgather_bucket_size), kHonoured,
       "elements per all-gather of updated parameters", positive},
      {NFOLD_KEY(zero_optimization.overlap_comm), kHonoured,
       "reduce buckets while backward still runs; unset: at stage 3, unless "
       "the ranks share memory and their threads occupy every core"},
      {NFOLD_KEY(zero_optimization.reduce_scatter), kHonoured,
       "false: all-reduce instead, with the same bits and more bytes sent"},
      {NFOLD_KEY(zero_optimization.reduce_at_boundary), kHonoured,
       "nfold's own key: add up unreduced gradients and reduce them once per "
       "optimizer step; stages 0 and 1"},
      {NFOLD_KEY(zero_optimization.ignore_unused_parameters), kHonoured,
       "false: a trainable parameter without gradient is an error that names "
       "it"},
      {NFOLD_KEY(zero_optimization.compute_grad_norm), kHonoured,
       "false: no gradient norm is computed or reported; needs stage 1 or 2 "
       "and gradient_clipping 0"},
      {NFOLD_KEY(zero_optimization.contiguous_gradients), kSubsumed,
       "gradients always go to contiguous flat buckets"},
      {NFOLD_KEY(zero_optimization.use_multi_rank_bucket_allreduce), kSubsumed,
       "one collective per bucket always serves all owners"},
      {NFOLD_KEY(zero_optimization.allgather_partitions), kSubsumed,
       "updated parameters are always gathered, never broadcast rank by rank"},
      {NFOLD_KEY(zero_optimization.round_robin_gradients), kSubsumed,
       "every unit is split evenly over the ranks, so all of them copy alike"},
      {NFOLD_KEY(zero_optimization.load_from_fp32_weights), kSubsumed,
       "master weights are always restored from fp32"},
      {NFOLD_KEY(zero_optimization.elastic_checkpoint), kSubsumed,
       "what is saved never depends on the number of ranks"},
      {NFOLD_KEY(zero_optimization.legacy_stage1), kIgnored,
       "an older stage 1 that no longer exists"},
      {NFOLD_KEY(zero_optimization.memory_efficient_linear), kSubsumed,
       "no linear layer is replaced, and none keeps a gathered weight"},
      {NFOLD_KEY(zero_optimization.parameter_alignment), kSubsumed,
       "parameters always start on 64-byte boundaries"},
      {NFOLD_KEY(zero_optimization.override_module_apply), kSubsumed,
       "modules are not changed, so apply works as it does in libtorch"},
      {NFOLD_KEY(zero_optimization.enable_sanity_checks), kSubsumed,
       "states of units are always checked"},
      {NFOLD_KEY(zero_optimization.save_muon_momentum_buffer_in_memory),
       kIgnored, "belongs to Muon, which this version lacks"},

      {NFOLD_KEY(zero_optimization.sub_group_size), kSubsumed,
       "the optimizer updates unit by unit", positive},
      {NFOLD_KEY(zero_optimization.stage3_prefetch_bucket_size), kHonoured,
       "elements gathered ahead of their use; 0: none", not_negative},
      {NFOLD_KEY(zero_optimization.stage3_param_persistence_threshold),
       kHonoured,
       "units of at most this many elements are never released; smaller "
       "parameters of a larger unit travel with it for nothing",
       not_negative},
      {NFOLD_KEY(zero_optimization.stage3_model_persistence_threshold),
       kHonoured, "elements that persistent units may have together",
       not_negative},
      {NFOLD_KEY(zero_optimization.stage3_max_live_parameters), kHonoured,
       "elements that may be gathered at a time, at least the largest unit",
       not_negative},
      {NFOLD_KEY(zero_optimization.stage3_max_reuse_distance), kHonoured,
       "a unit that is used again within this many elements of others stays "
       "gathered; 0: released after each use",
       not_negative},
      {NFOLD_KEY(zero_optimization.stage3_gather_16bit_weights_on_model_save),
       kSubsumed,
       "save_weights writes whole weights; at stage 3 inside of a "
       "GatheredParameters scope over all of them"},
      {NFOLD_KEY(zero_optimization.stage3_module_granularity_threshold),
       kSubsumed, "what is gathered together is a unit, not a module",
       not_negative},
      {NFOLD_KEY(zero_optimization.stage3_use_all_reduce_for_fetch_params),
       kHonoured,
       "gather by summing zero-filled buffers: twice the bytes, same values"},
      {NFOLD_KEY(zero_optimization.stage3_allgather_sequential), kHonoured,
       "one collective per unit, and none ahead of its use"},
      {NFOLD_KEY(zero_optimization.pipeline_loading_checkpoint), kIgnored,
       "belongs to sharded checkpoints, which this version lacks"},
      {NFOLD_KEY(zero_optimization.log_trace_cache_warnings), kHonoured,
       "warn when a step uses parameters in another order than the one "
       "before"},
      {NFOLD_KEY(zero_optimization.leaf_module.classes), kSubsumed, kAnyUse},
      {NFOLD_KEY(zero_optimization.leaf_module.names), kSubsumed, kAnyUse},
      {NFOLD_KEY(zero_optimization.leaf_module.name_suffixes), kSubsumed,
       kAnyUse},

      {NFOLD_KEY(zero_optimization.zero_hpz_partition_size), kHonoured,
       "at stage 3: neighbours that keep a second copy of the parameters "
       "between them from forward to backward, so that only forward gathers "
       "among all ranks; 1: none",
       positive},
      {NFOLD_KEY(zero_optimization.zero_quantized_weights), kHonoured,
       "at stage 3: gather parameters in int8; their owners, the optimizer and "
       "gather scopes keep them exact"},
      {NFOLD_KEY(zero_optimization.zero_quantized_nontrainable_weights),
       kHonoured,
       "at stage 3: keep shards of frozen parameters in int8, and gather them "
       "so"},
      {NFOLD_KEY(zero_optimization.zero_quantized_gradients), kHonoured,
       "at stage 3: reduce gradients in int4, within each machine and then "
       "between them"},
      {NFOLD_KEY(zero_optimization.zeropp_loco_param.err_beta), kHonoured,
       "error feedback of quantized gradients: how much of an error stays from "
       "one reduction to the next; unset means 0.8 where reset_T is set, else "
       "no feedback",
       below_1},
      {NFOLD_KEY(zero_optimization.zeropp_loco_param.reset_T), kHonoured,
       "reductions after which errors are forgotten; unset means 1024 where "
       "err_beta is set, else no feedback",
       positive},
      {NFOLD_KEY(zero_optimization.mics_shard_size), kHonoured,
       "MiCS, at stage 3: ranks that hold the state once among them, "
       "neighbours; "
       "the other such groups hold the same. -1: all ranks are one group"},
      {NFOLD_KEY(zero_optimization.mics_hierarchical_params_gather), kHonoured,
       "gather in two hops, between the machines of a shard group and then "
       "inside each; needs mics_shard_size, and shard groups of several "
       "machines"},
      {"zero_optimization.zenflow",
       {},
       kHonoured,
       "update the most important gradients first"},

      {NFOLD_KEY(zero_optimization.offload_param.device), kHonoured,
       "where parameters rest"},
      {NFOLD_KEY(zero_optimization.offload_param.nvme_path), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_param.buffer_count), kIgnored,
       kOffload, positive},
      {NFOLD_KEY(zero_optimization.offload_param.buffer_size), kIgnored,
       kOffload, positive},
      {NFOLD_KEY(zero_optimization.offload_param.max_in_cpu), kIgnored,
       kOffload, not_negative},
      {NFOLD_KEY(zero_optimization.offload_param.pin_memory), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.device), kHonoured,
       "where optimizer state rests"},
      {NFOLD_KEY(zero_optimization.offload_optimizer.nvme_path), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.buffer_count), kIgnored,
       kOffload, positive},
      {NFOLD_KEY(zero_optimization.offload_optimizer.pin_memory), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.pipeline_read), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.pipeline_write), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.fast_init), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.ratio), kIgnored, kOffload,
       fraction},
      {NFOLD_KEY(zero_optimization.offload_optimizer.super_offload), kIgnored,
       kOffload},
      {NFOLD_KEY(zero_optimization.offload_optimizer.cpuadam_cores_perc),
       kIgnored, kOffload, fraction},
      {"zero_optimization.cpu_offload",
       {},
       kHonoured,
       "deprecated: true means offload_optimizer with device cpu"},
      {"zero_optimization.cpu_offload_param",
       {},
       kHonoured,
       "deprecated: true means offload_param with device cpu"},
      {"zero_optimization.cpu_offload_use_pin_memory",
       {},
       kIgnored,
       "deprecated; DeepSpeed ignores it too"},
      {"allgather_size",
       {},
       kHonoured,
       "deprecated: allgather_bucket_size where zero_optimization is true or "
       "false instead of an object"},
  };
}

}  // namespace nfold
