#include "config/validate.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <type_traits>

#include "config/config_key.h"

namespace nfold {
namespace {

// Numbers that were filled in by hand have not been through the reader.
template <typename T>
bool is_in_range(const T& value, const JsonRange& range) {
  if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>) {
    const auto number = static_cast<double>(value);
    return std::isfinite(number) && range.holds(number);
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return is_in_range(value[0], range) && is_in_range(value[1], range);
  } else {
    return true;
  }
}

template <typename T>
bool is_in_range(const std::optional<T>& value, const JsonRange& range) {
  return !value || is_in_range(*value, range);
}

void check_ranges(const Config& config, JsonObject& reader) {
  Config copy = config;
  for (const ConfigKey& key : config_keys()) {
    if (!has_key(config, key)) continue;
    const bool fits = std::visit(
        [&](auto field) {
          if constexpr (std::is_same_v<decltype(field), std::monostate>) {
            return true;
          } else {
            return is_in_range(field(copy), key.range);
          }
        },
        key.field);
    if (!fits) {
      reader.violation(key.path,
                       fmt::format("expected {} but found {}", type_text(key),
                                   value_text(config, key)));
    }
  }
}

void check_availability(const Config& config, JsonObject& reader) {
  const Config defaults;
  for (const Unavailable& row : unavailable_keys()) {
    const ConfigKey* key = find_config_key(row.path);
    if (key == nullptr || !has_key(config, *key)) continue;
    const bool applies =
        row.applies != nullptr
            ? row.applies(config)
            : value_text(config, *key) != value_text(defaults, *key);
    if (applies) reader.unsupported(row.path, row.text);
  }
}

void check_precision(const Config& config, JsonObject& reader) {
  const Fp16Config& fp16 = config.fp16;
  const Bf16Config& bf16 = config.bf16;
  if (fp16.enabled && bf16.enabled) {
    reader.violation("bf16.enabled",
                     "expected false, as fp16.enabled is true; choose one");
  }
  if (fp16.enabled && fp16.loss_scale == 0) {
    const auto must_be_positive = [&](std::string_view path, double value) {
      if (value > 0) return;
      reader.violation(path, fmt::format("expected a number above 0 for a "
                                         "dynamic loss scale but found {}",
                                         value));
    };
    must_be_positive("fp16.loss_scale_window",
                     static_cast<double>(fp16.loss_scale_window));
    must_be_positive("fp16.min_loss_scale", fp16.min_loss_scale);
  }
  const auto& param_dtype = config.data_types.param_dtype;
  if (param_dtype && *param_dtype != config.param_dtype()) {
    reader.violation(
        "data_types.param_dtype",
        fmt::format("expected {}, which fp16.enabled and bf16.enabled choose, "
                    "but found {}",
                    dtype_name(config.param_dtype()),
                    dtype_name(*param_dtype)));
  }

  const bool is_sharded = config.zero_optimization.stage > 0;
  const auto check_master = [&](std::string_view path, bool is_set,
                                bool is_enabled, std::string_view mode) {
    if (!is_set) return;
    if (!is_enabled) {
      reader.violation(path, fmt::format("needs {} true", mode));
    }
    if (!is_sharded) {
      reader.violation(path,
                       "needs zero_optimization.stage 1, 2 or 3 but "
                       "found 0");
    }
  };
  check_master("fp16.fp16_master_weights_and_grads",
               fp16.fp16_master_weights_and_grads, fp16.enabled,
               "fp16.enabled");
  check_master("bf16.bf16_master_weights_and_grads",
               bf16.bf16_master_weights_and_grads, bf16.enabled,
               "bf16.enabled");
  if (bf16.bf16_optimizer_states && !bf16.bf16_master_weights_and_grads) {
    reader.violation("bf16.bf16_optimizer_states",
                     "needs bf16.bf16_master_weights_and_grads true");
  }
}

void check_dtypes(const Config& config, JsonObject& reader) {
  const auto check = [&](std::string_view path,
                         const std::optional<at::ScalarType>& dtype) {
    if (dtype && *dtype != at::kFloat && *dtype != at::kHalf &&
        *dtype != at::kBFloat16) {
      reader.violation(path, fmt::format("expected fp32, fp16 or bf16 but "
                                         "found {}",
                                         c10::toString(*dtype)));
    }
  };
  check("communication_data_type", config.communication_data_type);
  check("seq_parallel_communication_data_type",
        config.seq_parallel_communication_data_type);
  check("data_types.grad_accum_dtype", config.data_types.grad_accum_dtype);
  check("data_types.buffer_dtype", config.data_types.buffer_dtype);
}

void check_shard_groups(const Config& config, JsonObject& reader) {
  const ZeroConfig& zero = config.zero_optimization;
  const bool has_mics = zero.mics_shard_size > 0;
  const auto shard_size = [&](std::string_view text) {
    reader.violation("zero_optimization.mics_shard_size", text);
  };
  if (has_mics && zero.stage != 3) {
    shard_size(fmt::format("expected -1 at stage {}; shard groups need stage 3",
                           zero.stage));
  }
  if (has_mics && config.expert_parallel_size > 1) {
    shard_size(
        fmt::format("expected -1 with expert_parallel_size {} but found "
                    "{}; experts are sharded over their own groups",
                    config.expert_parallel_size, zero.mics_shard_size));
  }
  if (zero.mics_hierarchical_params_gather && !has_mics) {
    reader.violation(
        "zero_optimization.mics_hierarchical_params_gather",
        fmt::format("expected false as mics_shard_size is {}; two hops need "
                    "shard groups of several machines",
                    zero.mics_shard_size));
  }
  const auto secondary = [&](const std::string& where, std::string_view why) {
    reader.violation("zero_optimization.zero_hpz_partition_size",
                     fmt::format("expected 1 {} but found {}; {}", where,
                                 zero.zero_hpz_partition_size, why));
  };
  if (zero.zero_hpz_partition_size <= 1) return;
  if (zero.stage != 3) {
    secondary(fmt::format("at stage {}", zero.stage),
              "secondary shards need stage 3");
  }
  if (has_mics) {
    secondary(fmt::format("with mics_shard_size {}", zero.mics_shard_size),
              "a shard group is already small: choose one of the two");
  }
}

void check_quantization(const Config& config, JsonObject& reader) {
  const ZeroConfig& zero = config.zero_optimization;
  const auto check = [&](std::string_view key, bool is_set) {
    if (!is_set) return;
    const auto violation = [&](const std::string& text) {
      reader.violation(fmt::format("zero_optimization.{}", key), text);
    };
    if (zero.stage != 3) {
      violation(fmt::format(
          "expected false at stage {}; quantized communication needs stage 3",
          zero.stage));
    }
    if (zero.mics_shard_size > 0) {
      violation(fmt::format(
          "expected false with mics_shard_size {}; a shard group is already "
          "small: choose one of the two",
          zero.mics_shard_size));
    }
  };
  check("zero_quantized_weights", zero.zero_quantized_weights);
  check("zero_quantized_nontrainable_weights",
        zero.zero_quantized_nontrainable_weights);
  check("zero_quantized_gradients", zero.zero_quantized_gradients);
  if (zero.stage3_use_all_reduce_for_fetch_params &&
      (zero.zero_quantized_weights ||
       zero.zero_quantized_nontrainable_weights)) {
    reader.violation("zero_optimization.stage3_use_all_reduce_for_fetch_params",
                     "expected false with quantized weights, which cannot be "
                     "summed");
  }
  if (zero.zero_quantized_gradients && !zero.reduce_scatter) {
    reader.violation("zero_optimization.reduce_scatter",
                     "expected true with zero_quantized_gradients, which are "
                     "reduced to their owners");
  }
  const auto feedback = [&](std::string_view key, bool is_set) {
    if (!is_set || zero.zero_quantized_gradients) return;
    reader.violation(fmt::format("zero_optimization.zeropp_loco_param.{}", key),
                     "needs zero_quantized_gradients true, whose error "
                     "feedback it is");
  };
  feedback("err_beta", zero.zeropp_loco_param.err_beta.has_value());
  feedback("reset_T", zero.zeropp_loco_param.reset_T.has_value());
}

void check_zero(const Config& config, JsonObject& reader) {
  const ZeroConfig& zero = config.zero_optimization;
  check_shard_groups(config, reader);
  check_quantization(config, reader);
  if (zero.reduce_at_boundary && zero.stage > 1) {
    reader.violation(
        "zero_optimization.reduce_at_boundary",
        fmt::format("expected false at stage {}, where every micro step "
                    "reduces; use stage 0 or 1 with it",
                    zero.stage));
  }
  if (!zero.compute_grad_norm) {
    constexpr std::string_view kPath = "zero_optimization.compute_grad_norm";
    if (config.gradient_clipping != 0) {
      reader.violation(
          kPath, fmt::format("false needs gradient_clipping 0 but found {}",
                             config.gradient_clipping));
    }
    if (zero.stage != 1 && zero.stage != 2) {
      reader.violation(kPath, fmt::format("false needs stage 1 or 2 but found "
                                          "{}",
                                          zero.stage));
    }
    if (zero.offload_optimizer.device != OffloadDevice::kNone) {
      reader.violation(kPath, "false does not go with offload_optimizer");
    }
  }
  if (zero.offload_optimizer.ratio < 1 && zero.stage != 3) {
    reader.violation(
        "zero_optimization.offload_optimizer.ratio",
        fmt::format("expected 1 at stage {}; offloading a part needs stage 3",
                    zero.stage));
  }
  if (config.gradient_allreduce_op == GradientReduceOp::kSum) {
    if (zero.stage == 3) {
      reader.violation("gradient_allreduce_op", "expected mean at stage 3");
    }
    if (config.prescale_gradients || config.gradient_predivide_factor != 1) {
      reader.violation("gradient_allreduce_op",
                       "expected mean, as prescale_gradients and "
                       "gradient_predivide_factor split a division that sum "
                       "does not make");
    }
  }
}

void check_optimizer(const OptimizerConfig& optimizer, JsonObject& reader) {
  const OptimizerParams& params = optimizer.params;
  if (optimizer.type == OptimizerType::kSgd && params.nesterov &&
      (params.momentum == 0 || params.dampening != 0)) {
    reader.violation("optimizer.params.nesterov",
                     "true needs momentum above 0 and dampening 0");
  }
  const bool is_adam = optimizer.type == OptimizerType::kAdam ||
                       optimizer.type == OptimizerType::kAdamW;
  if (is_adam && !params.bias_correction &&
      (params.torch_adam || params.amsgrad)) {
    reader.violation("optimizer.params.bias_correction",
                     "expected true, as torch_adam and amsgrad take "
                     "torch::optim's loop, which always corrects");
  }
}

void check_scheduler(const SchedulerConfig& scheduler, JsonObject& reader) {
  const SchedulerParams& params = scheduler.params;
  switch (scheduler.type) {
    case SchedulerType::kWarmupDecayLr:
    case SchedulerType::kWarmupCosineLr:
      if (params.total_num_steps > 0 &&
          params.total_num_steps < params.warmup_num_steps) {
        reader.violation(
            "scheduler.params.total_num_steps",
            fmt::format("expected at least warmup_num_steps, which is {}, but "
                        "found {}",
                        params.warmup_num_steps, params.total_num_steps));
      }
      break;
    case SchedulerType::kOneCycle:
      if (params.cycle_max_lr < params.cycle_min_lr) {
        reader.violation(
            "scheduler.params.cycle_max_lr",
            fmt::format("expected at least cycle_min_lr, which is {}, but "
                        "found {}",
                        params.cycle_min_lr, params.cycle_max_lr));
      }
      if (params.cycle_max_mom < params.cycle_min_mom) {
        reader.violation(
            "scheduler.params.cycle_max_mom",
            fmt::format("expected at least cycle_min_mom, which is {}, but "
                        "found {}",
                        params.cycle_min_mom, params.cycle_max_mom));
      }
      break;
    case SchedulerType::kLrRangeTest:
    case SchedulerType::kWarmupLr:
      break;
  }
}

}  // namespace

void add_violations(const Config& config, JsonObject reader) {
  check_ranges(config, reader);
  check_availability(config, reader);
  check_precision(config, reader);
  check_dtypes(config, reader);
  check_zero(config, reader);
  if (config.optimizer) check_optimizer(*config.optimizer, reader);
  if (config.scheduler) check_scheduler(*config.scheduler, reader);
}

void Config::validate() const {
  JsonDocument document = JsonDocument::from_text("{}", "configuration");
  add_violations(*this, document.root());
  document.raise_if_violated();
}

}  // namespace nfold
