#include "optim/torch_optimizer.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>

#include "kernels/cast_copy.h"

namespace nfold {
namespace {

// Sets `lr` and weight decay of any of torch's option classes that has them.
template <typename Options>
bool apply_to(torch::optim::OptimizerOptions& options,
              const OptimGroup& group) {
  auto* typed = dynamic_cast<Options*>(&options);
  if (typed == nullptr) return false;
  typed->lr(group.lr);
  typed->weight_decay(group.weight_decay);
  if constexpr (requires { typed->momentum(0.0); }) {
    if (group.momentum) typed->momentum(*group.momentum);
  }
  if constexpr (requires { std::get<0>(typed->betas()); }) {
    if (group.momentum) {
      typed->betas({*group.momentum, std::get<1>(typed->betas())});
    }
  }
  return true;
}

template <typename Options>
bool read_from(const torch::optim::OptimizerOptions& options,
               OptimGroup& group) {
  const auto* typed = dynamic_cast<const Options*>(&options);
  if (typed == nullptr) return false;
  group.lr = typed->lr();
  group.weight_decay = typed->weight_decay();
  return true;
}

}  // namespace

TorchOptimizer::TorchOptimizer(const TorchOptimizerFactory& factory,
                               ShardedOptimizerInput input)
    : units_(std::move(input.units)) {
  groups_ = std::move(input.groups);
  std::vector<std::vector<at::Tensor>> params(groups_.size());
  for (const auto& segment : input.segments) {
    auto param = units_[segment.unit]
                     ->master()
                     .narrow(0, segment.begin, segment.numel)
                     .detach();
    params[segment.group].push_back(param);
    pieces_.push_back({segment, param});
  }
  std::vector<torch::optim::OptimizerParamGroup> torch_groups;
  for (auto& group : params) torch_groups.emplace_back(std::move(group));
  optimizer_ = factory(std::move(torch_groups));
  TORCH_CHECK_VALUE(optimizer_, "the optimizer factory returned null");
  TORCH_CHECK_VALUE(optimizer_->param_groups().size() == groups_.size(),
                    "the optimizer factory was given ", groups_.size(),
                    " parameter groups, but its optimizer has ",
                    optimizer_->param_groups().size(),
                    "; pass on the groups it receives, in order");
  TORCH_CHECK_NOT_IMPLEMENTED(
      dynamic_cast<torch::optim::LBFGS*>(optimizer_.get()) == nullptr,
      "LBFGS is not element-wise and cannot run on shards; use AdamW, Adam, "
      "SGD, Adagrad, Lion or RMSprop");
  read_groups();
}

// What nobody set stays as the factory made it.
void TorchOptimizer::read_groups() {
  using namespace torch::optim;
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const auto& options = optimizer_->param_groups()[i].options();
    OptimGroup made{options.get_lr(), 0, std::nullopt};
    static_cast<void>(read_from<AdamOptions>(options, made) ||
                      read_from<AdamWOptions>(options, made) ||
                      read_from<SGDOptions>(options, made) ||
                      read_from<AdagradOptions>(options, made) ||
                      read_from<RMSpropOptions>(options, made));
    if (std::isnan(groups_[i].lr)) groups_[i].lr = made.lr;
    if (std::isnan(groups_[i].weight_decay)) {
      groups_[i].weight_decay = made.weight_decay;
    }
  }
}

void TorchOptimizer::apply_groups() {
  using namespace torch::optim;
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    auto& options = optimizer_->param_groups()[i].options();
    const auto& group = groups_[i];
    if (!(apply_to<AdamOptions>(options, group) ||
          apply_to<AdamWOptions>(options, group) ||
          apply_to<SGDOptions>(options, group) ||
          apply_to<AdagradOptions>(options, group) ||
          apply_to<RMSpropOptions>(options, group))) {
      options.set_lr(group.lr);
    }
  }
}

void TorchOptimizer::set_grads(float grad_scale) {
  for (auto& piece : pieces_) {
    const auto& segment = piece.segment;
    const auto grad =
        units_[segment.unit]->grad().narrow(0, segment.begin, segment.numel);
    auto& target = piece.param.mutable_grad();
    if (grad.scalar_type() == piece.param.scalar_type()) {
      target = grad;
    } else if (!target.defined()) {
      target = at::empty_like(piece.param);
    }
    if (grad_scale != 1.0f || !target.is_same(grad)) {
      kernels::scaled_cast(target, grad, grad_scale);
    }
  }
}

void TorchOptimizer::step(float grad_scale,
                          const std::function<void(std::size_t)>& on_updated) {
  apply_groups();
  set_grads(grad_scale);
  optimizer_->step();
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const auto low = units_[unit]->low_precision_owned();
    if (low.defined()) kernels::scaled_cast(low, units_[unit]->master(), 1.0f);
    on_updated(unit);
  }
  for (auto& piece : pieces_) {
    if (units_[piece.segment.unit]->options().grad_dtype ==
        piece.param.scalar_type()) {
      piece.param.mutable_grad().reset();
    }
  }
}

std::vector<std::pair<std::string, at::Tensor>> TorchOptimizer::states_of(
    const at::Tensor& param) const {
  using namespace torch::optim;
  std::vector<std::pair<std::string, at::Tensor>> states;
  const auto found = optimizer_->state().find(param.unsafeGetTensorImpl());
  if (found == optimizer_->state().end()) return states;
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) states.emplace_back(name, tensor);
  };
  auto* state = found->second.get();
  if (auto* adam = dynamic_cast<AdamParamState*>(state)) {
    add("exp_avg", adam->exp_avg());
    add("exp_avg_sq", adam->exp_avg_sq());
    add("max_exp_avg_sq", adam->max_exp_avg_sq());
  } else if (auto* adamw = dynamic_cast<AdamWParamState*>(state)) {
    add("exp_avg", adamw->exp_avg());
    add("exp_avg_sq", adamw->exp_avg_sq());
    add("max_exp_avg_sq", adamw->max_exp_avg_sq());
  } else if (auto* sgd = dynamic_cast<SGDParamState*>(state)) {
    add("momentum_buffer", sgd->momentum_buffer());
  } else if (auto* adagrad = dynamic_cast<AdagradParamState*>(state)) {
    add("sum", adagrad->sum());
  } else if (auto* rmsprop = dynamic_cast<RMSpropParamState*>(state)) {
    add("square_avg", rmsprop->square_avg());
    add("momentum_buffer", rmsprop->momentum_buffer());
    add("grad_avg", rmsprop->grad_avg());
  }
  return states;
}

std::vector<std::string> TorchOptimizer::state_names() const {
  std::vector<std::string> names;
  for (const auto& piece : pieces_) {
    for (const auto& [name, tensor] : states_of(piece.param)) {
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        names.push_back(name);
      }
    }
  }
  return names;
}

at::Tensor TorchOptimizer::state(std::size_t unit, const std::string& name) {
  check_state_name(name);
  auto flat = at::zeros_like(units_[unit]->master());
  for (const auto& piece : pieces_) {
    if (piece.segment.unit != unit) continue;
    for (const auto& [state_name, tensor] : states_of(piece.param)) {
      if (state_name != name) continue;
      flat.narrow(0, piece.segment.begin, piece.segment.numel).copy_(tensor);
    }
  }
  return flat;
}

void TorchOptimizer::set_state(std::size_t unit, const std::string& name,
                               std::int64_t begin, const at::Tensor& values) {
  check_state_name(name);
  for (const auto& piece : pieces_) {
    if (piece.segment.unit != unit) continue;
    const auto common = intersection({piece.segment.begin, piece.segment.numel},
                                     {begin, values.numel()});
    if (common.numel == 0) continue;
    for (const auto& [state_name, tensor] : states_of(piece.param)) {
      if (state_name != name) continue;
      tensor.narrow(0, common.begin - piece.segment.begin, common.numel)
          .copy_(values.narrow(0, common.begin - begin, common.numel));
    }
  }
}

std::int64_t TorchOptimizer::state_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& piece : pieces_) {
    for (const auto& [name, tensor] : states_of(piece.param)) {
      bytes += static_cast<std::int64_t>(tensor.nbytes());
    }
  }
  return bytes;
}

int TorchOptimizer::num_states() const {
  return static_cast<int>(state_names().size());
}

}  // namespace nfold
