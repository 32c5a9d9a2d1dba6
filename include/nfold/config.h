// File: nfold/config.h
//
// What a run does, in DeepSpeed's words: the fields below are exactly the keys
// of DeepSpeed's JSON, with its defaults. docs/configuration.md says what each
// key does in nfold.
//
//   auto config = nfold::Config::from_json_file("zero2.json");
//   config.zero_optimization.stage;                       // 2
//   auto sizes = nfold::resolve_batch(config, world.size());
//   sizes.gradient_accumulation_steps;
//
// A Config that was read from JSON is valid: every violation of a file is
// reported at once, in one c10::ValueError with one line per key. A Config that
// was filled in by hand is checked by validate(), which the engine calls.
//
// Plain values: copy freely; no function here keeps state.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

class JsonObject;

enum class OffloadDevice : std::uint8_t { kNone, kCpu, kNvme };
enum class GradientReduceOp : std::uint8_t { kMean, kSum };
enum class TagValidation : std::uint8_t { kIgnore, kWarn, kFail };
enum class WarmupType : std::uint8_t { kLog, kLinear };

// "Adam" reads as kAdam, and means AdamW unless adam_w_mode is false.
enum class OptimizerType : std::uint8_t {
  kAdam,
  kAdamW,
  kAdagrad,
  kLion,
  kSgd,
  kRmsProp,
};

enum class SchedulerType : std::uint8_t {
  kLrRangeTest,
  kOneCycle,
  kWarmupLr,
  kWarmupDecayLr,
  kWarmupCosineLr,
};

struct OffloadParamConfig {
  OffloadDevice device = OffloadDevice::kNone;
  std::optional<std::string> nvme_path;
  std::int64_t buffer_count = 5;
  std::int64_t buffer_size = 100'000'000;
  std::int64_t max_in_cpu = 1'000'000'000;
  bool pin_memory = true;
};

struct OffloadOptimizerConfig {
  OffloadDevice device = OffloadDevice::kNone;
  std::optional<std::string> nvme_path;
  std::int64_t buffer_count = 4;
  bool pin_memory = true;
  bool pipeline_read = false;
  bool pipeline_write = false;
  bool fast_init = false;
  double ratio = 1.0;
  bool super_offload = false;
  double cpuadam_cores_perc = 0.8;
};

struct LeafModuleConfig {
  std::vector<std::string> classes;
  std::vector<std::string> names;
  std::vector<std::string> name_suffixes;
};

// Error feedback of quantized gradients; used if either is given.
struct LocoConfig {
  // An error is kept with this weight, and what is new with the rest: 0.8.
  std::optional<double> err_beta;
  // Reductions after which all errors are forgotten: 1024.
  std::optional<std::int64_t> reset_T;

  bool is_enabled() const { return err_beta || reset_T; }
};

struct ZeroConfig {
  std::int64_t stage = 0;
  // Elements of one gradient bucket; a unit is never split over two buckets.
  std::int64_t reduce_bucket_size = 500'000'000;
  // Elements of one all-gather of updated parameters.
  std::int64_t allgather_bucket_size = 500'000'000;
  // Reduce while backward still runs. Resolved: absent means stage 3 only.
  std::optional<bool> overlap_comm;
  // False: all-reduce and keep the own shard. Same bits, more bytes sent.
  bool reduce_scatter = true;
  // nfold's own key. Accumulate unreduced gradients locally and reduce them
  // once, at the accumulation boundary. Stages 0 and 1 only.
  bool reduce_at_boundary = false;
  // False: a trainable parameter without gradient at the boundary is an error.
  bool ignore_unused_parameters = true;
  bool contiguous_gradients = true;
  bool use_multi_rank_bucket_allreduce = true;
  bool allgather_partitions = true;
  bool round_robin_gradients = false;
  bool load_from_fp32_weights = true;
  bool elastic_checkpoint = false;
  bool legacy_stage1 = false;
  bool memory_efficient_linear = true;
  bool pipeline_loading_checkpoint = false;
  bool override_module_apply = true;
  bool log_trace_cache_warnings = false;
  bool enable_sanity_checks = false;
  bool save_muon_momentum_buffer_in_memory = false;
  // False: the gradient norm is not computed, and StepReport has none.
  bool compute_grad_norm = true;
  bool parameter_alignment = false;

  OffloadParamConfig offload_param;
  OffloadOptimizerConfig offload_optimizer;
  LeafModuleConfig leaf_module;

  std::int64_t sub_group_size = 1'000'000'000;
  std::int64_t stage3_prefetch_bucket_size = 50'000'000;
  std::int64_t stage3_param_persistence_threshold = 100'000;
  std::int64_t stage3_model_persistence_threshold =
      std::numeric_limits<std::int64_t>::max();
  std::int64_t stage3_max_live_parameters = 1'000'000'000;
  std::int64_t stage3_max_reuse_distance = 1'000'000'000;
  bool stage3_gather_16bit_weights_on_model_save = false;
  std::int64_t stage3_module_granularity_threshold = 0;
  bool stage3_use_all_reduce_for_fetch_params = false;
  bool stage3_allgather_sequential = false;

  std::int64_t zero_hpz_partition_size = 1;
  bool zero_quantized_weights = false;
  bool zero_quantized_nontrainable_weights = false;
  bool zero_quantized_gradients = false;
  LocoConfig zeropp_loco_param;
  std::int64_t mics_shard_size = -1;
  bool mics_hierarchical_params_gather = false;
};

struct Fp16Config {
  bool enabled = false;
  bool auto_cast = false;
  // 0: dynamic loss scale; otherwise a constant one.
  double loss_scale = 0.0;
  // The dynamic loss scale starts at 2 to this power.
  std::int64_t initial_scale_power = 16;
  std::int64_t loss_scale_window = 1000;
  std::int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_loss_scale = 1.0;
  bool fp16_master_weights_and_grads = false;
};

struct Bf16Config {
  bool enabled = false;
  bool immediate_grad_update = false;
  bool check_grad_overflow = true;
  bool bf16_master_weights_and_grads = false;
  bool bf16_optimizer_states = false;
};

struct DataTypesConfig {
  std::optional<at::ScalarType> grad_accum_dtype;
  std::optional<at::ScalarType> param_dtype;
  std::optional<at::ScalarType> buffer_dtype;
};

// Settings of every optimizer type; which ones a type reads is in
// docs/configuration.md, and giving it another is an error. Start from
// default_optimizer_params when filling one in by hand.
struct OptimizerParams {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool bias_correction = true;
  // Decoupled weight decay (AdamW); false: L2 added to the gradient (Adam).
  bool adam_w_mode = true;
  bool torch_adam = false;
  bool amsgrad = false;
  double momentum = 0.0;
  double dampening = 0.0;
  bool nesterov = false;
  double initial_accumulator_value = 0.0;
  double lr_decay = 0.0;
  double alpha = 0.99;
  bool centered = false;
};

// The defaults that this type has where no key is given; they differ in lr,
// betas and eps.
OptimizerParams default_optimizer_params(OptimizerType type);

struct OptimizerConfig {
  OptimizerType type = OptimizerType::kAdamW;
  OptimizerParams params;
};

// Settings of every scheduler type. Steps count optimizer updates.
struct SchedulerParams {
  // WarmupLR, WarmupDecayLR, WarmupCosineLR
  double warmup_min_lr = 0.0;
  // Empty: the lr of the parameter group.
  std::optional<double> warmup_max_lr;
  std::int64_t warmup_num_steps = 1000;
  WarmupType warmup_type = WarmupType::kLog;
  // Required by WarmupDecayLR and WarmupCosineLR.
  std::int64_t total_num_steps = 0;
  double warmup_min_ratio = 0.0;
  double cos_min_ratio = 1e-4;
  // LRRangeTest
  double lr_range_test_min_lr = 1e-3;
  std::int64_t lr_range_test_step_size = 2000;
  double lr_range_test_step_rate = 1.0;
  bool lr_range_test_staircase = false;
  // OneCycle; the first two are required.
  double cycle_min_lr = 0.0;
  double cycle_max_lr = 0.0;
  double decay_lr_rate = 0.0;
  std::int64_t cycle_first_step_size = 2000;
  // Empty: as cycle_first_step_size.
  std::optional<std::int64_t> cycle_second_step_size;
  std::int64_t cycle_first_stair_count = 0;
  // Empty: as cycle_first_stair_count.
  std::optional<std::int64_t> cycle_second_stair_count;
  std::int64_t decay_step_size = 0;
  bool cycle_momentum = true;
  double cycle_min_mom = 0.8;
  double cycle_max_mom = 0.9;
  double decay_mom_rate = 0.0;
  // -1: a new run.
  std::int64_t last_batch_iteration = -1;
};

// The defaults that this type has where no key is given.
SchedulerParams default_scheduler_params(SchedulerType type);

struct SchedulerConfig {
  SchedulerType type = SchedulerType::kWarmupLr;
  SchedulerParams params;
};

struct ParallelWriteConfig {
  bool pipeline_stage = false;
};

struct CheckpointConfig {
  TagValidation tag_validation = TagValidation::kWarn;
  bool load_universal = false;
  bool use_node_local_storage = false;
  ParallelWriteConfig parallel_write;
};

struct AioConfig {
  std::int64_t block_size = 1'048'576;
  std::int64_t queue_depth = 8;
  std::int64_t intra_op_parallelism = 1;
  bool single_submit = false;
  bool overlap_events = true;
  bool use_gds = false;
};

// Where a metrics writer puts its files; an empty path means the run directory.
struct MonitorConfig {
  bool enabled = false;
  std::string output_path;
  std::string job_name = "nfold";
};

struct CommsLoggerConfig {
  bool enabled = false;
  bool verbose = false;
  bool prof_all = true;
  bool debug = false;
  std::vector<std::string> prof_ops;
};

struct ActivationCheckpointingConfig {
  bool partition_activations = false;
  bool cpu_checkpointing = false;
  bool contiguous_memory_optimization = false;
  std::optional<std::int64_t> number_checkpoints;
  bool synchronize_checkpoint_boundary = false;
  bool profile = false;
};

struct Config {
  // At least one of the first two is needed; see resolve_batch.
  std::optional<std::int64_t> train_batch_size;
  std::optional<std::int64_t> train_micro_batch_size_per_gpu;
  std::optional<std::int64_t> gradient_accumulation_steps;

  ZeroConfig zero_optimization;
  Fp16Config fp16;
  Bf16Config bf16;
  DataTypesConfig data_types;
  std::optional<OptimizerConfig> optimizer;
  std::optional<SchedulerConfig> scheduler;

  // Greatest global norm of the gradients; 0: no clipping.
  double gradient_clipping = 1.0;
  // True: divide by the ranks before the sum instead of after it.
  bool prescale_gradients = false;
  // Divide by this before the sum and by the rest after it.
  double gradient_predivide_factor = 1.0;
  GradientReduceOp gradient_allreduce_op = GradientReduceOp::kMean;
  std::optional<at::ScalarType> communication_data_type;
  at::ScalarType seq_parallel_communication_data_type = at::kFloat;
  bool zero_allow_untested_optimizer = false;
  bool zero_force_ds_cpu_optimizer = true;
  // True: the engine counts micro steps and acts at the boundary. False: the
  // caller calls step() only where an update is due.
  bool managed_gradient_accumulation = true;
  // Sizes of the process groups, see nfold/mesh.h. Data x sequence x tensor are
  // all ranks; experts are shared out inside of data x sequence.
  std::optional<std::int64_t> data_parallel_size;  // empty: what is left
  std::int64_t sequence_parallel_size = 1;
  std::int64_t tensor_parallel_size = 1;
  std::int64_t expert_parallel_size = 1;
  bool use_data_before_expert_parallelism = false;
  // nfold's own, see nfold/host_memory.h.
  bool cache_host_memory = true;
  bool disable_allgather = false;
  // Empty: never.
  std::optional<std::int64_t> steps_per_print;
  bool wall_clock_breakdown = false;
  bool memory_breakdown = false;
  bool dump_state = false;
  bool dataloader_drop_last = false;

  CheckpointConfig checkpoint;
  AioConfig aio;
  MonitorConfig tensorboard;
  MonitorConfig csv_monitor;
  CommsLoggerConfig comms_logger;
  ActivationCheckpointingConfig activation_checkpointing;

  // What a reader of the file should know, one line each: keys that change
  // nothing here and why, "auto" taken as the default, deprecated keys. To be
  // logged by whoever read the file; not part of the JSON.
  std::vector<std::string> notes;

  // Reads JSON (comments allowed). Raises c10::ValueError with every violation
  // of the file, or c10::NotImplementedError when all that is wrong is that
  // this version lacks what the file asks for; IoError if it cannot be read.
  static Config from_json_file(const std::string& path);

  // The same for a text: JSON, or JSON in base64. `source_name` is how errors
  // call it.
  static Config from_json_text(std::string_view text,
                               std::string_view source_name = "configuration");

  // The same for an object inside a larger file. Violations are added to those
  // of the object's document, which raises them; that "auto" was taken as the
  // default is among the document's notes. See nfold/strict_json.h.
  static Config from_json_object(JsonObject object);

  // The effective configuration: every key with its value. Reading the text
  // gives this configuration again.
  std::string to_json_text() const;

  // Raises as from_json_file does when values contradict each other.
  void validate() const;

  // What parameters are stored and computed in: bf16, fp16 or fp32.
  at::ScalarType param_dtype() const;
  // What micro steps add gradients up in: data_types.grad_accum_dtype, fp32 if
  // absent. DeepSpeed's default is the parameters' dtype.
  at::ScalarType accumulation_dtype() const;
  // What gradients travel in: communication_data_type, or param_dtype().
  at::ScalarType comm_dtype() const;
};

struct BatchSizes {
  std::int64_t train_batch_size = 0;
  std::int64_t train_micro_batch_size_per_gpu = 0;
  std::int64_t gradient_accumulation_steps = 0;
};

// Completes and checks the three batch sizes: batch = micro batch x steps x
// ranks. Any two give the third; the batch or the micro batch alone means one
// step. Raises c10::ValueError naming the key that does not fit and the values
// that would.
BatchSizes resolve_batch(const Config& config, int data_parallel_size);

// The ranks over which a batch is split: data_parallel_size, or what the
// sequence and tensor sizes leave of the world. Raises c10::ValueError with the
// sizes unless they multiply to the world.
int data_parallel_size_of(const Config& config, int world_size);

}  // namespace nfold
