#include "config/config_key.h"

namespace nfold {
namespace {

constexpr std::string_view kFileIo =
    "belongs to offloading to files, which this version lacks";
constexpr std::string_view kCheckpointed =
    "recompute with nfold::checkpoint, or the trainer's "
    "model.activation_checkpointing";
constexpr std::string_view kMetrics =
    "metrics.jsonl in the run directory has the same figures";
constexpr std::string_view kCounted =
    "calls and bytes of every collective are always counted";
constexpr std::string_view kDiagnostics =
    "a section of DeepSpeed's that changes no result";
constexpr std::string_view kRemoved =
    "a feature of DeepSpeed's that changes the training";

}  // namespace

std::vector<ConfigKey> service_keys() {
  using enum KeyStatus;
  const JsonRange positive{.least = 1};
  return {
      {NFOLD_KEY(checkpoint.tag_validation), kIgnored,
       "belongs to checkpoints of the whole state, which this version lacks"},
      {NFOLD_KEY(checkpoint.load_universal), kHonoured,
       "resume from DeepSpeed's universal layout"},
      {NFOLD_KEY(checkpoint.use_node_local_storage), kHonoured,
       "every machine writes to a file system of its own"},
      {NFOLD_KEY(checkpoint.parallel_write.pipeline_stage), kSubsumed,
       "every rank always writes its own part"},

      {NFOLD_KEY(aio.block_size), kIgnored, kFileIo, positive},
      {NFOLD_KEY(aio.queue_depth), kIgnored, kFileIo, positive},
      {NFOLD_KEY(aio.intra_op_parallelism), kIgnored, kFileIo, positive},
      {NFOLD_KEY(aio.single_submit), kIgnored, kFileIo},
      {NFOLD_KEY(aio.overlap_events), kIgnored, kFileIo},
      {NFOLD_KEY(aio.use_gds), kHonoured, "read files straight into a GPU"},

      {NFOLD_KEY(tensorboard.enabled), kSubsumed,
       "the trainer always writes TensorBoard event files"},
      {NFOLD_KEY(tensorboard.output_path), kHonoured,
       "folder of the event files; empty means the run directory"},
      {NFOLD_KEY(tensorboard.job_name), kHonoured,
       "folder below output_path; without one it is not used"},
      {NFOLD_KEY(csv_monitor.enabled), kSubsumed, kMetrics},
      {NFOLD_KEY(csv_monitor.output_path), kSubsumed, kMetrics},
      {NFOLD_KEY(csv_monitor.job_name), kSubsumed, kMetrics},
      {NFOLD_KEY(comms_logger.enabled), kSubsumed, kCounted},
      {NFOLD_KEY(comms_logger.verbose), kSubsumed, kCounted},
      {NFOLD_KEY(comms_logger.prof_all), kSubsumed, kCounted},
      {NFOLD_KEY(comms_logger.debug), kSubsumed, kCounted},
      {NFOLD_KEY(comms_logger.prof_ops), kSubsumed, kCounted},

      {NFOLD_KEY(activation_checkpointing.partition_activations), kIgnored,
       kCheckpointed},
      {NFOLD_KEY(activation_checkpointing.cpu_checkpointing), kIgnored,
       kCheckpointed},
      {NFOLD_KEY(activation_checkpointing.contiguous_memory_optimization),
       kIgnored, kCheckpointed},
      {NFOLD_KEY(activation_checkpointing.number_checkpoints), kIgnored,
       kCheckpointed, positive},
      {NFOLD_KEY(activation_checkpointing.synchronize_checkpoint_boundary),
       kIgnored, kCheckpointed},
      {NFOLD_KEY(activation_checkpointing.profile), kIgnored, kCheckpointed},

      {"flops_profiler", {}, kIgnored, kDiagnostics},
      {"wandb", {}, kIgnored, kDiagnostics},
      {"comet", {}, kIgnored, kDiagnostics},
      {"timers", {}, kIgnored, kDiagnostics},
      {"autotuning", {}, kIgnored, kDiagnostics},
      {"compile", {}, kIgnored, kDiagnostics},
      {"nebula", {}, kIgnored, kRemoved},
      {"amp", {}, kIgnored, kRemoved},
      {"compression_training", {}, kIgnored, kRemoved},
      {"quantize_training", {}, kIgnored, kRemoved},
      {"sparse_gradients", {}, kIgnored, kRemoved},
      {"sparse_attention", {}, kIgnored, kRemoved},
      {"eigenvalue", {}, kIgnored, kRemoved},
      {"elasticity", {}, kIgnored, kRemoved},
      {"graph_harvesting", {}, kIgnored, kRemoved},
      {"curriculum_learning", {}, kIgnored, kRemoved},
      {"progressive_layer_drop", {}, kIgnored, kRemoved},
      {"data_efficiency", {}, kIgnored, kRemoved},
      {"hybrid_engine", {}, kIgnored, kRemoved},
      {"torch_autocast", {}, kIgnored, kRemoved},
      {"tensor_parallel", {}, kIgnored, kRemoved},
      {"pipeline", {}, kIgnored, kRemoved},
      {"$schema",
       {},
       kIgnored,
       "where an editor finds the schema of this table"},
  };
}

}  // namespace nfold
