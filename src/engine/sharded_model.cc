#include "engine/sharded_model.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "base/log.h"
#include "engine/mesh_groups.h"
#include "engine/sharding_plan.h"
#include "param/model_agreement.h"

namespace nfold {
namespace {

// All that the units of one group will share must fit before any of it is
// taken.
void check_shared_room(const std::vector<PlannedUnit>& plan,
                       const std::vector<ParamState>& params) {
  std::vector<std::pair<Group*, std::int64_t>> needs;  // in one order on all
  for (const auto& planned : plan) {
    if (!ShardedUnit::shares_memory(planned.options)) continue;
    auto* group = planned.options.groups.shard;
    auto found =
        std::find_if(needs.begin(), needs.end(),
                     [&](const auto& need) { return need.first == group; });
    if (found == needs.end()) found = needs.insert(needs.end(), {group, 0});
    for (const auto index : planned.params) {
      found->second +=
          params[index].tensor().numel() *
          static_cast<std::int64_t>(c10::elementSize(planned.options.dtype));
    }
  }
  for (const auto& [group, num_bytes] : needs) {
    SharedArray::check_room(
        *group, num_bytes,
        c10::str("the sharded parameters of ", group->size(), " ranks"));
  }
}

}  // namespace

void convert_buffers(torch::nn::Module& module, const Config& config) {
  const auto dtype =
      config.data_types.buffer_dtype.value_or(config.param_dtype());
  const bool is_asked = config.data_types.buffer_dtype.has_value() ||
                        config.param_dtype() != at::kFloat;
  if (!is_asked) return;
  for (auto& buffer : module.buffers()) {
    if (buffer.is_floating_point()) buffer.set_data(buffer.to(dtype));
  }
}

void warn_of_differing(const std::vector<std::string>& names) {
  if (names.empty()) return;
  log_warning(
      "the ranks built the model with different values; all ranks now hold "
      "rank 0's. {} tensors differed, the first is {}. Seed every rank alike "
      "to avoid the copy.",
      names.size(), names.front());
}

ShardedModel::ShardedModel(torch::nn::Module& module, Mesh& mesh,
                           const Config& config)
    : ShardedModel(
          [&] {
            auto params = collect_params(module);
            warn_of_differing(agree_on_model(groups_on(mesh), module, params));
            convert_buffers(module, config);
            return params;
          }(),
          mesh, config, InitialValues::kFromParams) {}

ShardedModel::ShardedModel(std::vector<ParamState> params, const Mesh& mesh,
                           const Config& config, InitialValues initial) {
  const auto plan =
      plan_sharding(params, config, stage_policy(config), groups_on(mesh));
  check_shared_room(plan, params);
  for (const auto& planned : plan) {
    std::vector<ParamState> members;
    for (const auto index : planned.params) {
      const auto numel = params[index].tensor().numel();
      numel_ += numel;
      if (planned.options.is_trained) trained_numel_ += numel;
      members.push_back(std::move(params[index]));
    }
    units_.push_back(std::make_unique<ShardedUnit>(std::move(members),
                                                   planned.options, initial));
    if (planned.options.is_trained) trained_.push_back(units_.back().get());
  }
}

void ShardedModel::check_made_for(const torch::nn::Module& module,
                                  const Mesh& mesh,
                                  const Config& config) const {
  const auto params = collect_params(module);
  const auto plan =
      plan_sharding(params, config, stage_policy(config), groups_on(mesh));
  bool is_same = plan.size() == units_.size();
  for (std::size_t i = 0; is_same && i < plan.size(); ++i) {
    is_same = plan[i].options == units_[i]->options() &&
              plan[i].params.size() == units_[i]->params().size();
  }
  TORCH_CHECK_VALUE(
      is_same, "[rank ", mesh.rank(),
      "] nfold::init sharded the module for another configuration, or it was "
      "changed since (requires_grad, a parameter added or taken away). Give "
      "nfold::init and Engine the same configuration, and freeze parameters "
      "in the function that nfold::init calls.");
}

std::vector<ShardedUnit*> ShardedModel::all() const {
  std::vector<ShardedUnit*> units;
  units.reserve(units_.size());
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
