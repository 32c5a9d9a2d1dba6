#include "engine/sharded_model.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "base/log.h"
#include "param/model_agreement.h"
#include "param/unit_policy.h"

namespace nfold {
namespace {

bool is_low_precision(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kHalf;
}

// fp16 and bf16 runs store every real parameter in that dtype; an fp32 run
// leaves each as the user made it.
at::ScalarType stored_dtype(const at::Tensor& param, const Config& config) {
  return param.is_floating_point() && is_low_precision(config.param_dtype())
             ? config.param_dtype()
             : param.scalar_type();
}

at::ScalarType master_dtype(at::ScalarType stored, const Config& config) {
  const bool keeps_fp16 = stored == at::kHalf && config.fp16.enabled &&
                          config.fp16.fp16_master_weights_and_grads;
  return is_low_precision(stored) && !keeps_fp16 ? at::kFloat : stored;
}

// What the configuration says; fp64 parameters keep their precision.
at::ScalarType grad_dtype(at::ScalarType stored, const Config& config) {
  return stored == at::kDouble ? at::kDouble : config.accumulation_dtype();
}

void convert_buffers(torch::nn::Module& module, const Config& config) {
  const auto dtype =
      config.data_types.buffer_dtype.value_or(config.param_dtype());
  const bool is_asked = config.data_types.buffer_dtype.has_value() ||
                        is_low_precision(config.param_dtype());
  if (!is_asked) return;
  for (auto& buffer : module.buffers()) {
    if (buffer.is_floating_point()) buffer.set_data(buffer.to(dtype));
  }
}

void report_differing(const std::vector<std::string>& differing) {
  if (differing.empty()) return;
  log_warning(
      "the ranks built the model with different values; all ranks now hold "
      "rank 0's. {} tensors differed, the first is {}. Seed every rank alike "
      "to avoid the copy.",
      differing.size(), differing.front());
}

}  // namespace

ShardedModel::ShardedModel(torch::nn::Module& module, Group& group,
                           const Config& config, const StagePolicy& policy) {
  auto params = collect_params(module);
  report_differing(agree_on_model(group, module, params));
  convert_buffers(module, config);

  std::vector<UnitCandidate> candidates;
  for (const auto& param : params) {
    candidates.push_back({param.name, param.tensor().numel(),
                          stored_dtype(param.tensor(), config),
                          param.tensor().requires_grad()});
    numel_ += param.tensor().numel();
  }
  std::int64_t persistent_numel = 0;
  for (auto& plan : plan_units(candidates, unit_policy_options(numel_))) {
    const auto& first = candidates[plan.params.front()];
    ShardedUnitOptions options;
    options.name = plan.name;
    options.dtype = first.dtype;
    options.master_dtype = master_dtype(first.dtype, config);
    options.grad_dtype = grad_dtype(first.dtype, config);
    options.rank = group.rank();
    options.num_shards = group.size();
    options.owns_whole_range = !policy.shards_optimizer;
    options.is_trained = first.requires_grad;
    std::vector<ParamState> members;
    std::int64_t unit_numel = 0;
    for (const auto index : plan.params) {
      unit_numel += candidates[index].numel;
      if (first.requires_grad) trained_numel_ += candidates[index].numel;
      members.push_back(std::move(params[index]));
    }
    const auto& zero = config.zero_optimization;
    const bool is_persistent =
        unit_numel <= zero.stage3_param_persistence_threshold &&
        persistent_numel + unit_numel <=
            zero.stage3_model_persistence_threshold;
    options.is_resident =
        !policy.shards_params || group.size() == 1 || is_persistent;
    if (is_persistent) persistent_numel += unit_numel;
    units_.push_back(
        std::make_unique<ShardedUnit>(std::move(members), options));
    if (first.requires_grad) trained_.push_back(units_.back().get());
  }
}

std::vector<ShardedUnit*> ShardedModel::all() const {
  std::vector<ShardedUnit*> units;
  for (const auto& unit : units_) units.push_back(unit.get());
  return units;
}

ParamAddress ShardedModel::find(const at::Tensor& param) const {
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const auto& params = units_[unit]->params();
    for (std::size_t i = 0; i < params.size(); ++i) {
      for (const auto& tensor : params[i].tensors) {
        if (tensor.is_same(param)) return {unit, i};
      }
    }
  }
  TORCH_CHECK_VALUE(false, "a tensor of shape ", param.sizes(),
                    " is not a parameter of the engine's module; pass a "
                    "parameter itself, not a copy or a view of it");
}

std::size_t ShardedModel::trained_index(std::size_t unit) const {
  const auto found =
      std::find(trained_.begin(), trained_.end(), units_[unit].get());
  TORCH_CHECK_VALUE(found != trained_.end(), units_[unit]->name(),
                    ": the parameter is frozen, so it has neither gradient "
                    "nor optimizer state; set requires_grad before the "
                    "engine is made to train it");
  return static_cast<std::size_t>(found - trained_.begin());
}

}  // namespace nfold
