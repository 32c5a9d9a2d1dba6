#include "engine/sharding_plan.h"

#include <ATen/core/Tensor.h>

#include "param/unit_policy.h"

namespace nfold {
namespace {

bool is_low_precision(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kHalf;
}

// Integers and fp64 travel as they are.
bool is_coded(at::ScalarType dtype) {
  return is_low_precision(dtype) || dtype == at::kFloat;
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

UnitCandidate candidate_of(const ParamState& param, const Config& config) {
  const auto& tensor = param.tensor();
  return {param.name, tensor.numel(), stored_dtype(tensor, config),
          tensor.requires_grad(), param.placement};
}

}  // namespace

std::vector<PlannedUnit> plan_sharding(const std::vector<ParamState>& params,
                                       const Config& config,
                                       const StagePolicy& policy,
                                       const GroupsOf& groups_of) {
  std::vector<UnitCandidate> candidates;
  std::int64_t numel = 0;
  for (const auto& param : params) {
    candidates.push_back(candidate_of(param, config));
    numel += candidates.back().numel;
  }
  const auto& zero = config.zero_optimization;
  std::vector<PlannedUnit> units;
  std::int64_t persistent_numel = 0;
  for (auto& plan : plan_units(candidates, unit_policy_options(numel))) {
    const auto& first = candidates[plan.params.front()];
    std::int64_t unit_numel = 0;
    for (const auto param : plan.params) unit_numel += candidates[param].numel;
    const bool is_persistent =
        unit_numel <= zero.stage3_param_persistence_threshold &&
        persistent_numel + unit_numel <=
            zero.stage3_model_persistence_threshold;
    if (is_persistent) persistent_numel += unit_numel;

    ShardedUnitOptions options;
    options.name = plan.name;
    options.dtype = first.dtype;
    options.master_dtype = master_dtype(first.dtype, config);
    options.grad_dtype = grad_dtype(first.dtype, config);
    options.groups = groups_of(first.placement);
    options.rank = options.groups.shard->rank();
    options.num_shards = options.groups.shard->size();
    options.owns_whole_range = !policy.shards_optimizer;
    options.is_resident =
        !policy.shards_params || options.num_shards == 1 || is_persistent;
    if (options.is_resident) options.groups.secondary = nullptr;
    options.is_trained = first.requires_grad;
    if (!options.is_resident && is_coded(first.dtype)) {
      options.rests_encoded =
          !options.is_trained && zero.zero_quantized_nontrainable_weights;
      if (options.rests_encoded || zero.zero_quantized_weights) {
        options.codec = kWeightCodec;
      }
    }
    units.push_back({std::move(options), std::move(plan.params)});
  }
  return units;
}

}  // namespace nfold
