// What this version lacks. A feature that arrives deletes its rows here, and
// gives its rows in the *_keys.cc the status kHonoured.
#include "config/config_key.h"

namespace nfold {

const std::vector<Unavailable>& unavailable_keys() {
  static const std::vector<Unavailable> rows = {
      {"zero_optimization.offload_param.device",
       "offloading is not available in this version; use none"},
      {"zero_optimization.offload_optimizer.device",
       "offloading is not available in this version; use none, with stage 1 or "
       "2 to shard optimizer state"},
      {"zero_optimization.zenflow",
       "ZenFlow is not available in this version; remove it"},
      {"zero_optimization.legacy_stage1",
       "the old stage 1 does not exist; use false with stage 1"},
      {"bf16.bf16_master_weights_and_grads",
       "master weights in bf16 are not available in this version; use false, "
       "which keeps them in fp32"},
      {"bf16.bf16_optimizer_states",
       "optimizer state in bf16 is not available in this version; use false, "
       "which keeps it in fp32"},
      {"disable_allgather",
       "parameters are always gathered in this version; use false"},
      {"checkpoint.load_universal",
       "loading checkpoints is not available in this version; use false"},
      {"checkpoint.use_node_local_storage",
       "only a file system shared by all ranks is available in this version; "
       "use false"},
      {"aio.use_gds",
       "files are read through the CPU in this version; use "
       "false"},
      {"nebula", "not available; remove it"},
      {"amp", "Apex amp is not available; use bf16 or fp16"},
      {"compression_training", "not available; remove it"},
      {"quantize_training", "not available; remove it"},
      {"sparse_gradients", "sparse gradients are not available; use false"},
      {"sparse_attention", "not available; choose attention in the model"},
      {"eigenvalue", "not available; remove it"},
      {"elasticity",
       "not available; set the batch sizes for the number of ranks"},
      {"graph_harvesting", "not available; use false"},
      {"curriculum_learning", "not available; order the data yourself"},
      {"progressive_layer_drop", "not available; drop layers in the model"},
      {"data_efficiency", "not available; prepare the data yourself"},
      {"hybrid_engine", "not available; remove it"},
      {"torch_autocast", "not available; use bf16 or fp16"},
      {"tensor_parallel",
       "layers are not split for you; use tensor_parallel_size, and layers "
       "that "
       "are split over the tensor group"},
      {"pipeline", "pipeline stages are not available; remove it"},
  };
  return rows;
}

const std::vector<KeyAlias>& key_aliases() {
  static const std::vector<KeyAlias> aliases = {
      {"stage3_gather_fp16_weights_on_model_save",
       "zero_optimization.stage3_gather_16bit_weights_on_model_save"},
      {"prefetch_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
       false},
      {"param_persistence_threshold",
       "zero_optimization.stage3_param_persistence_threshold", false},
      {"model_persistence_threshold",
       "zero_optimization.stage3_model_persistence_threshold", false},
      {"max_live_parameters", "zero_optimization.stage3_max_live_parameters",
       false},
      {"max_reuse_distance", "zero_optimization.stage3_max_reuse_distance",
       false},
      {"gather_16bit_weights_on_model_save",
       "zero_optimization.stage3_gather_16bit_weights_on_model_save", false},
      {"module_granularity_threshold",
       "zero_optimization.stage3_module_granularity_threshold", false},
      {"use_all_reduce_for_fetch_params",
       "zero_optimization.stage3_use_all_reduce_for_fetch_params", false},
      {"allgather_sequential", "zero_optimization.stage3_allgather_sequential",
       false},
  };
  return aliases;
}

}  // namespace nfold
