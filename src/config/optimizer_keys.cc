#include "config/config_key.h"

namespace nfold {

std::vector<ConfigKey> optimizer_keys() {
  using enum KeyStatus;
  using enum OptimizerType;
  constexpr unsigned kAdams = types(kAdam, kAdamW);
  const JsonRange not_negative{.least = 0};
  const JsonRange decay{.least = 0, .most = 1, .most_is_open = true};
  return {
      {NFOLD_OPTIMIZER_KEY(type), kHonoured,
       "the optimizer, without regard to case; Adam decouples weight decay, as "
       "AdamW does, unless adam_w_mode is false",
       {}, kEveryType, true},
      {NFOLD_OPTIMIZER_KEY(params.lr), kHonoured, "learning rate",
       not_negative},
      {NFOLD_OPTIMIZER_KEY(params.betas), kHonoured,
       "decay of the running averages", decay, kAdams | types(kLion)},
      {NFOLD_OPTIMIZER_KEY(params.eps), kHonoured,
       "added to the denominator", not_negative,
       kAdams | types(kAdagrad, kRmsProp)},
      {NFOLD_OPTIMIZER_KEY(params.weight_decay), kHonoured,
       "pull of the weights towards zero", not_negative},
      {NFOLD_OPTIMIZER_KEY(params.bias_correction), kHonoured,
       "correct the averages of early steps", {}, kAdams},
      {NFOLD_OPTIMIZER_KEY(params.adam_w_mode), kHonoured,
       "false: weight decay is added to the gradient", {}, types(kAdam)},
      {NFOLD_OPTIMIZER_KEY(params.torch_adam), kHonoured,
       "use torch::optim's Adam or AdamW instead of nfold's", {}, kAdams},
      {NFOLD_OPTIMIZER_KEY(params.amsgrad), kHonoured,
       "keep the greatest second moment", {}, kAdams},
      {NFOLD_OPTIMIZER_KEY(params.momentum), kHonoured,
       "decay of the running gradient", decay, types(kSgd, kRmsProp)},
      {NFOLD_OPTIMIZER_KEY(params.dampening), kHonoured,
       "share of a gradient kept out of the momentum", {}, types(kSgd)},
      {NFOLD_OPTIMIZER_KEY(params.nesterov), kHonoured,
       "look one momentum step ahead; needs momentum", {}, types(kSgd)},
      {NFOLD_OPTIMIZER_KEY(params.lr_decay), kHonoured,
       "decay of the learning rate per step", not_negative, types(kAdagrad)},
      {NFOLD_OPTIMIZER_KEY(params.initial_accumulator_value), kHonoured,
       "what the sum of squares starts at", not_negative, types(kAdagrad)},
      {NFOLD_OPTIMIZER_KEY(params.alpha), kHonoured,
       "decay of the mean square", decay, types(kRmsProp)},
      {NFOLD_OPTIMIZER_KEY(params.centered), kHonoured,
       "subtract the squared mean gradient", {}, types(kRmsProp)},
      {"optimizer.params.fused", {}, kSubsumed,
       "the loops of nfold always take one pass"},
      {"optimizer.params.foreach", {}, kSubsumed,
       "the loops of nfold always take one pass"},
      {"optimizer.params.max_grad_norm", {}, kHonoured,
       "never accepted: clipping is set by gradient_clipping"},
      {"optimizer.legacy_fusion", {}, kIgnored, "an older fused optimizer"},
  };
}

std::vector<ConfigKey> scheduler_keys() {
  using enum KeyStatus;
  using enum SchedulerType;
  constexpr unsigned kWarmups =
      types(kWarmupLr, kWarmupDecayLr, kWarmupCosineLr);
  constexpr unsigned kAbsolute = types(kWarmupLr, kWarmupDecayLr);
  const JsonRange not_negative{.least = 0};
  const JsonRange positive{.least = 1};
  const JsonRange fraction{.least = 0, .most = 1};
  return {
      {NFOLD_SCHEDULER_KEY(type), kHonoured,
       "how the learning rate changes from step to step", {}, kEveryType,
       true},
      {NFOLD_SCHEDULER_KEY(params.warmup_min_lr), kHonoured,
       "learning rate of the first step", not_negative, kAbsolute},
      {NFOLD_SCHEDULER_KEY(params.warmup_max_lr), kHonoured,
       "learning rate after warm-up; unset means that of the parameter group "
       "(WarmupDecayLR: 0.001)",
       not_negative, kAbsolute},
      {NFOLD_SCHEDULER_KEY(params.warmup_num_steps), kHonoured,
       "steps of warm-up; fewer than 2 count as 2", positive, kWarmups},
      {NFOLD_SCHEDULER_KEY(params.warmup_type), kHonoured,
       "shape of the warm-up; log rises as ln(step + 1) / ln(steps)", {},
       kWarmups},
      {NFOLD_SCHEDULER_KEY(params.total_num_steps), kHonoured,
       "steps after which the decay ends", positive,
       types(kWarmupDecayLr, kWarmupCosineLr), true},
      {NFOLD_SCHEDULER_KEY(params.warmup_min_ratio), kHonoured,
       "share of the learning rate at the first step", fraction,
       types(kWarmupCosineLr)},
      {NFOLD_SCHEDULER_KEY(params.cos_min_ratio), kHonoured,
       "share of the learning rate at the end", fraction,
       types(kWarmupCosineLr)},
      {NFOLD_SCHEDULER_KEY(params.lr_range_test_min_lr), kHonoured,
       "learning rate of the first step", not_negative, types(kLrRangeTest)},
      {NFOLD_SCHEDULER_KEY(params.lr_range_test_step_size), kHonoured,
       "steps per rise", positive, types(kLrRangeTest)},
      {NFOLD_SCHEDULER_KEY(params.lr_range_test_step_rate), kHonoured,
       "rise per that many steps, in units of the first learning rate",
       not_negative, types(kLrRangeTest)},
      {NFOLD_SCHEDULER_KEY(params.lr_range_test_staircase), kHonoured,
       "rise in steps instead of evenly", {}, types(kLrRangeTest)},
      {NFOLD_SCHEDULER_KEY(params.cycle_min_lr), kHonoured,
       "learning rate at both ends of the cycle", not_negative,
       types(kOneCycle), true},
      {NFOLD_SCHEDULER_KEY(params.cycle_max_lr), kHonoured,
       "learning rate at its top", not_negative, types(kOneCycle), true},
      {NFOLD_SCHEDULER_KEY(params.decay_lr_rate), kHonoured,
       "decay after the cycle", not_negative, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_first_step_size), kHonoured,
       "steps of the rise", positive, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_second_step_size), kHonoured,
       "steps of the fall; unset means as many as of the rise", positive,
       types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_first_stair_count), kHonoured,
       "stairs of the rise; 0: none", not_negative, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_second_stair_count), kHonoured,
       "stairs of the fall; unset means as many as of the rise", not_negative,
       types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.decay_step_size), kHonoured,
       "steps per decay; 0: no decay", not_negative, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_momentum), kHonoured,
       "move the momentum against the learning rate", {}, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_min_mom), kHonoured,
       "momentum at the top", fraction, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.cycle_max_mom), kHonoured,
       "momentum at both ends", fraction, types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.decay_mom_rate), kHonoured,
       "decay of the momentum after the cycle", not_negative,
       types(kOneCycle)},
      {NFOLD_SCHEDULER_KEY(params.last_batch_iteration), kHonoured,
       "the step before the first one; -1 for a new run", {.least = -1}},
  };
}

}  // namespace nfold
