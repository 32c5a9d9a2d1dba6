#include "optim/lr_schedule.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "base/log.h"

namespace nfold {
namespace {

bool is_warmup(SchedulerType type) {
  return type == SchedulerType::kWarmupLr ||
         type == SchedulerType::kWarmupDecayLr ||
         type == SchedulerType::kWarmupCosineLr;
}

void check_above_zero(const char* key, std::int64_t value) {
  TORCH_CHECK_VALUE(value > 0, "scheduler.params.", key,
                    ": expected a number of steps above 0 but found ", value);
}

void check_shape(SchedulerType type, const SchedulerParams& params) {
  if (is_warmup(type)) {
    check_above_zero("warmup_num_steps", params.warmup_num_steps);
    if (type != SchedulerType::kWarmupLr) {
      check_above_zero("total_num_steps", params.total_num_steps);
    }
  } else if (type == SchedulerType::kLrRangeTest) {
    check_above_zero("lr_range_test_step_size", params.lr_range_test_step_size);
  } else {
    check_above_zero("cycle_first_step_size", params.cycle_first_step_size);
    TORCH_CHECK_VALUE(params.cycle_second_step_size.value_or(0) >= 0,
                      "scheduler.params.cycle_second_step_size: expected a "
                      "number of steps that is not negative but found ",
                      *params.cycle_second_step_size);
  }
}

}  // namespace

LrSchedule::LrSchedule(const SchedulerConfig& config,
                       std::vector<double> base_lrs)
    : type_(config.type),
      params_(config.params),
      base_lrs_(std::move(base_lrs)) {
  check_shape(type_, params_);
  // The logarithm of 1 cannot be divided by.
  params_.warmup_num_steps =
      std::max<std::int64_t>(params_.warmup_num_steps, 2);
  first_size_ = params_.cycle_first_step_size;
  second_size_ = params_.cycle_second_step_size.value_or(first_size_);
  if ((type_ == SchedulerType::kWarmupDecayLr ||
       type_ == SchedulerType::kWarmupCosineLr) &&
      params_.total_num_steps < params_.warmup_num_steps) {
    log_warning(
        "scheduler: total_num_steps {} is less than warmup_num_steps {}: the "
        "rate falls to its end right after the warm-up",
        params_.total_num_steps, params_.warmup_num_steps);
  }
}

// From 0 to 1 over the warm-up.
double LrSchedule::warmup_progress(std::int64_t iteration) const {
  const auto steps = static_cast<double>(params_.warmup_num_steps);
  const auto done = static_cast<double>(iteration);
  return params_.warmup_type == WarmupType::kLog
             ? std::log(done + 1) / std::log(steps)
             : done / steps;
}

double LrSchedule::warmup_lr(std::int64_t iteration, std::size_t group) const {
  const double least = params_.warmup_min_lr;
  if (iteration < 0) return least;
  const double most = params_.warmup_max_lr.value_or(base_lrs_[group]);
  double progress = 1;
  if (iteration < params_.warmup_num_steps) {
    progress = warmup_progress(iteration);
  } else if (type_ == SchedulerType::kWarmupDecayLr) {
    const auto left = static_cast<double>(params_.total_num_steps - iteration);
    const auto all =
        static_cast<double>(params_.total_num_steps - params_.warmup_num_steps);
    progress = std::max(0.0, left / std::max(1.0, all));
  }
  return least + (most - least) * progress;
}

double LrSchedule::cosine_ratio(std::int64_t iteration) const {
  if (iteration < 0) return 0;
  if (iteration < params_.warmup_num_steps) {
    const double least = params_.warmup_min_ratio;
    return least + (1 - least) * warmup_progress(iteration);
  }
  const auto done =
      static_cast<double>(iteration - params_.warmup_num_steps + 1);
  const auto all = static_cast<double>(std::max<std::int64_t>(
      1, params_.total_num_steps - params_.warmup_num_steps));
  const double progress = std::min(1.0, done / all);
  const double height = (1 + std::cos(std::numbers::pi * progress)) / 2;
  const double least = params_.cos_min_ratio;
  return std::max(0.0, least + (1 - least) * height);
}

double LrSchedule::range_test_lr(std::int64_t iteration) const {
  double intervals = static_cast<double>(iteration + 1) /
                     static_cast<double>(params_.lr_range_test_step_size);
  if (params_.lr_range_test_staircase) intervals = std::floor(intervals);
  return params_.lr_range_test_min_lr *
         (1 + params_.lr_range_test_step_rate * intervals);
}

double LrSchedule::cycle_height(std::int64_t iteration) const {
  const std::int64_t place = (iteration + 1) % cycle_size();
  const bool is_rising = place <= first_size_;
  const std::int64_t from_end = is_rising ? place : cycle_size() - place;
  const auto length =
      static_cast<double>(is_rising ? first_size_ : second_size_);
  const std::int64_t num_stairs =
      is_rising ? params_.cycle_first_stair_count
                : params_.cycle_second_stair_count.value_or(
                      params_.cycle_first_stair_count);
  if (num_stairs <= 0) return static_cast<double>(from_end) / length;
  const auto stairs = static_cast<double>(num_stairs);
  return std::floor(static_cast<double>(from_end) * stairs / length) / stairs;
}

std::optional<double> LrSchedule::decay_intervals(
    std::int64_t iteration) const {
  if (iteration < cycle_size()) return std::nullopt;
  if (params_.decay_step_size == 0) return 0;
  return static_cast<double>(iteration - cycle_size() + 1) /
         static_cast<double>(params_.decay_step_size);
}

double LrSchedule::lr(std::int64_t updates_done, std::size_t group) const {
  const std::int64_t iteration = params_.last_batch_iteration + updates_done;
  switch (type_) {
    case SchedulerType::kLrRangeTest:
      return range_test_lr(iteration);
    case SchedulerType::kWarmupLr:
    case SchedulerType::kWarmupDecayLr:
      return warmup_lr(iteration, group);
    case SchedulerType::kWarmupCosineLr:
      return base_lrs_[group] * cosine_ratio(iteration);
    case SchedulerType::kOneCycle:
      break;
  }
  if (const auto intervals = decay_intervals(iteration)) {
    return params_.cycle_min_lr / (1 + params_.decay_lr_rate * *intervals);
  }
  const double range = params_.cycle_max_lr - params_.cycle_min_lr;
  return params_.cycle_min_lr + range * cycle_height(iteration);
}

std::optional<double> LrSchedule::momentum(std::int64_t updates_done) const {
  if (type_ != SchedulerType::kOneCycle || !params_.cycle_momentum) {
    return std::nullopt;
  }
  const std::int64_t iteration = params_.last_batch_iteration + updates_done;
  if (iteration < 0) return params_.cycle_min_mom;
  if (const auto intervals = decay_intervals(iteration)) {
    return params_.cycle_max_mom * (1 + params_.decay_mom_rate * *intervals);
  }
  const double range = params_.cycle_max_mom - params_.cycle_min_mom;
  return params_.cycle_max_mom - range * cycle_height(iteration);
}

void LrSchedule::apply(std::int64_t updates_done,
                       std::vector<OptimGroup>& groups) const {
  TORCH_CHECK_VALUE(groups.size() == base_lrs_.size(), "scheduler: expected ",
                    base_lrs_.size(),
                    " parameter groups, as when it was made, but found ",
                    groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    groups[i].lr = lr(updates_done, i);
    if (const auto value = momentum(updates_done)) groups[i].momentum = value;
  }
}

LrSchedule make_lr_schedule(const SchedulerConfig& config,
                            const ShardedOptimizer& optimizer) {
  std::vector<double> base_lrs;
  for (const OptimGroup& group : optimizer.groups()) {
    base_lrs.push_back(group.lr);
  }
  return LrSchedule(config, std::move(base_lrs));
}

}  // namespace nfold
