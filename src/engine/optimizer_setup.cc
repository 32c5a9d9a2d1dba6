#include "engine/optimizer_setup.h"

#include <c10/util/Exception.h>

#include <limits>
#include <optional>

#include "engine/stage_policy.h"
#include "nfold/dummy_optim.h"

namespace nfold {
namespace {

// For each trained unit and parameter: its group.
using GroupTable = std::vector<std::vector<std::optional<std::size_t>>>;

GroupTable table_of(const ShardedModel& model,
                    const std::vector<ParamGroup>& groups) {
  GroupTable table;
  for (const auto* unit : model.trained()) {
    table.emplace_back(unit->params().size());
  }
  for (std::size_t group = 0; group < groups.size(); ++group) {
    for (const auto& tensor : groups[group].params) {
      const auto address = model.find(tensor);
      const auto& param = model.units()[address.unit]->params()[address.param];
      auto& cell = table[model.trained_index(address.unit)][address.param];
      TORCH_CHECK_VALUE(!cell.has_value(), "parameter ", param.name,
                        " is in parameter group ", cell.value_or(0),
                        " and in group ", group, "; list every parameter once");
      cell = group;
    }
  }
  std::string missing;
  for (std::size_t unit = 0; unit < table.size(); ++unit) {
    for (std::size_t param = 0; param < table[unit].size(); ++param) {
      if (!table[unit][param]) {
        missing += "\n  " + model.trained()[unit]->params()[param].name;
      }
    }
  }
  TORCH_CHECK_VALUE(
      missing.empty(),
      "these trainable parameters are in no parameter group:", missing,
      "\nAdd them to one, or freeze them with "
      "set_requires_grad(false) before the engine is made.");
  return table;
}

std::vector<ParamGroup> groups_or_default(const ShardedModel& model,
                                          const EngineOptions& options) {
  if (!options.param_groups.empty()) return options.param_groups;
  ParamGroup all;
  for (const auto* unit : model.trained()) {
    for (const auto& param : unit->params()) {
      all.params.push_back(param.tensor());
    }
  }
  return {all};
}

// As DeepSpeed has it: where parameters are not sharded, an optimizer that does
// nothing is taken for a mistake.
OptimizerFactory checked_factory(const OptimizerFactory& factory,
                                 const Config& config) {
  return [&factory, &config](auto groups) {
    auto optimizer = factory(std::move(groups));
    TORCH_CHECK_VALUE(
        stage_policy(config).shards_params ||
            dynamic_cast<const DummyOptim*>(optimizer.get()) == nullptr,
        "zero_optimization.stage ", config.zero_optimization.stage,
        ": expected an optimizer that updates but the factory made a "
        "DummyOptim, which is for stage 3; leave optimizer_factory and "
        "\"optimizer\" out to run without one");
    return optimizer;
  };
}

}  // namespace

std::unique_ptr<ShardedOptimizer> make_engine_optimizer(
    const ShardedModel& model, const Config& config,
    const EngineOptions& options) {
  if (!options.optimizer_factory && !config.optimizer) return nullptr;
  const auto groups = groups_or_default(model, options);
  const auto table = table_of(model, groups);

  ShardedOptimizerInput input;
  input.units = model.trained();
  for (std::size_t unit = 0; unit < input.units.size(); ++unit) {
    std::vector<std::size_t> group_of_param;
    for (const auto& group : table[unit]) group_of_param.push_back(*group);
    for (auto& segment :
         plan_segments(unit, input.units[unit]->layout(),
                       input.units[unit]->owned_range(), group_of_param)) {
      input.segments.push_back(segment);
    }
  }
  // A factory's optimizer knows its own settings; see OptimGroup.
  constexpr auto kUnset = std::numeric_limits<double>::quiet_NaN();
  const bool is_users = static_cast<bool>(options.optimizer_factory);
  for (const auto& group : groups) {
    input.groups.push_back(
        {group.lr.value_or(is_users ? kUnset : config.optimizer->params.lr),
         group.weight_decay.value_or(
             is_users ? kUnset : config.optimizer->params.weight_decay),
         std::nullopt});
  }
  return is_users ? make_torch_optimizer(
                        checked_factory(options.optimizer_factory, config),
                        std::move(input))
                  : make_sharded_optimizer(*config.optimizer, std::move(input));
}

}  // namespace nfold
