#include "nfold/config.h"

namespace nfold {

OptimizerParams default_optimizer_params(OptimizerType type) {
  OptimizerParams params;
  switch (type) {
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW:
    case OptimizerType::kSgd:
      break;
    case OptimizerType::kAdagrad:
      params.lr = 1e-2;
      params.eps = 1e-10;
      break;
    case OptimizerType::kLion:
      params.lr = 1e-4;
      params.betas = {0.9, 0.99};
      break;
    case OptimizerType::kRmsProp:
      params.lr = 1e-2;
      break;
  }
  return params;
}

SchedulerParams default_scheduler_params(SchedulerType type) {
  SchedulerParams params;
  if (type == SchedulerType::kWarmupDecayLr) params.warmup_max_lr = 1e-3;
  return params;
}

at::ScalarType Config::param_dtype() const {
  if (fp16.enabled) return at::kHalf;
  return bf16.enabled ? at::kBFloat16 : at::kFloat;
}

at::ScalarType Config::accumulation_dtype() const {
  return data_types.grad_accum_dtype.value_or(at::kFloat);
}

at::ScalarType Config::comm_dtype() const {
  return communication_data_type.value_or(param_dtype());
}

}  // namespace nfold
