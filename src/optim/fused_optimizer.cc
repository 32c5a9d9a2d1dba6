#include "optim/fused_optimizer.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "kernels/optim_step.h"

namespace nfold {
namespace {

std::vector<std::string> names_of_states(const OptimizerConfig& config) {
  switch (config.type) {
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW:
      return {"exp_avg", "exp_avg_sq"};
    case OptimizerType::kSgd:
      if (config.params.momentum == 0) return {};
      return {"momentum_buffer"};
    case OptimizerType::kAdagrad:
      return {"sum"};
    case OptimizerType::kLion:
      return {"exp_avg"};
    default:
      TORCH_CHECK_VALUE(false,
                        "there is no fused loop for this optimizer type");
  }
}

// 16-bit master weights still have their state in fp32.
at::ScalarType state_dtype(const ShardedUnit& unit) {
  return unit.master().scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

bool FusedOptimizer::has_loop_for(OptimizerType type) {
  return type == OptimizerType::kAdam || type == OptimizerType::kAdamW ||
         type == OptimizerType::kSgd || type == OptimizerType::kAdagrad ||
         type == OptimizerType::kLion;
}

FusedOptimizer::FusedOptimizer(const OptimizerConfig& config,
                               ShardedOptimizerInput input)
    : config_(config),
      units_(std::move(input.units)),
      segments_(std::move(input.segments)),
      names_(names_of_states(config)) {
  groups_ = std::move(input.groups);
  const double initial = config_.type == OptimizerType::kAdagrad
                             ? config_.params.initial_accumulator_value
                             : 0.0;
  for (const auto* unit : units_) {
    auto& states = states_.emplace_back();
    for (std::size_t i = 0; i < names_.size(); ++i) {
      states.push_back(at::full({unit->owned_range().numel}, initial,
                                at::TensorOptions(state_dtype(*unit))));
    }
  }
}

void FusedOptimizer::step(float grad_scale,
                          const std::function<void(std::size_t)>& on_updated) {
  ++steps_;
  auto segment = segments_.begin();
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    for (; segment != segments_.end() && segment->unit == unit; ++segment) {
      update(*segment, grad_scale);
    }
    on_updated(unit);
  }
}

void FusedOptimizer::update(const OwnedSegment& segment, float grad_scale) {
  auto& unit = *units_[segment.unit];
  const auto& group = groups_[segment.group];
  const auto& params = config_.params;
  const auto part = [&](const at::Tensor& owned) {
    return owned.defined() ? owned.narrow(0, segment.begin, segment.numel)
                           : owned;
  };
  kernels::OptimStep step;
  step.master = part(unit.master());
  step.grad = part(unit.grad());
  step.low_precision = part(unit.low_precision_owned());
  step.grad_scale = grad_scale;
  const auto& states = states_[segment.unit];
  switch (config_.type) {
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW: {
      kernels::AdamHyper hyper;
      hyper.lr = group.lr;
      hyper.beta1 = group.momentum.value_or(params.betas[0]);
      hyper.beta2 = params.betas[1];
      hyper.eps = params.eps;
      hyper.weight_decay = group.weight_decay;
      hyper.is_decoupled =
          config_.type == OptimizerType::kAdamW || params.adam_w_mode;
      hyper.has_bias_correction = params.bias_correction;
      kernels::adam_step(hyper, steps_, step, part(states[0]), part(states[1]));
      return;
    }
    case OptimizerType::kSgd: {
      kernels::SgdHyper hyper;
      hyper.lr = group.lr;
      hyper.momentum =
          params.momentum == 0 ? 0 : group.momentum.value_or(params.momentum);
      hyper.dampening = params.dampening;
      hyper.weight_decay = group.weight_decay;
      hyper.is_nesterov = params.nesterov;
      kernels::sgd_step(hyper, steps_, step,
                        states.empty() ? at::Tensor() : part(states[0]));
      return;
    }
    case OptimizerType::kAdagrad: {
      kernels::AdagradHyper hyper;
      hyper.lr = group.lr;
      hyper.lr_decay = params.lr_decay;
      hyper.eps = params.eps;
      hyper.weight_decay = group.weight_decay;
      kernels::adagrad_step(hyper, steps_, step, part(states[0]));
      return;
    }
    case OptimizerType::kLion: {
      kernels::LionHyper hyper;
      hyper.lr = group.lr;
      hyper.beta1 = group.momentum.value_or(params.betas[0]);
      hyper.beta2 = params.betas[1];
      hyper.weight_decay = group.weight_decay;
      kernels::lion_step(hyper, step, part(states[0]));
      return;
    }
    default:
      TORCH_INTERNAL_ASSERT(false, "the constructor admits no other type");
  }
}

std::vector<std::string> FusedOptimizer::state_names() const { return names_; }

const at::Tensor& FusedOptimizer::live_state(std::size_t unit,
                                             const std::string& name) const {
  check_state_name(name);
  const auto found = std::find(names_.begin(), names_.end(), name);
  return states_[unit][static_cast<std::size_t>(found - names_.begin())];
}

at::Tensor FusedOptimizer::state(std::size_t unit, const std::string& name) {
  return live_state(unit, name);
}

void FusedOptimizer::set_state(std::size_t unit, const std::string& name,
                               std::int64_t begin, const at::Tensor& values) {
  live_state(unit, name).narrow(0, begin, values.numel()).copy_(values);
}

std::int64_t FusedOptimizer::state_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& states : states_) {
    for (const auto& state : states) {
      bytes += static_cast<std::int64_t>(state.nbytes());
    }
  }
  return bytes;
}

int FusedOptimizer::num_states() const {
  return static_cast<int>(names_.size());
}

}  // namespace nfold
