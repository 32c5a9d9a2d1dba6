#include "engine/reduction_setup.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "nfold/cores.h"

namespace nfold {
namespace {

// A bucket need not be larger than the largest unit: memory would grow, and
// nothing could be reduced before backward has ended.
std::int64_t bucket_numel(const Config& config,
                          const std::vector<ShardedUnit*>& units) {
  std::int64_t largest = 1;
  for (const auto* unit : units) {
    largest = std::max(largest, unit->layout().numel());
  }
  return std::min(config.zero_optimization.reduce_bucket_size, largest);
}

Carriers carriers_of(const Mesh& mesh) {
  return {.shares_memory =
              std::string_view(mesh.state_group().transport()) == "shm",
          .num_threads = at::get_num_threads() * mesh.ranks_on_host(),
          .num_cores = usable_cores()};
}

}  // namespace

bool overlaps_backward(const ZeroConfig& zero, const Carriers& carriers) {
  if (zero.overlap_comm) return *zero.overlap_comm;
  return zero.stage == 3 &&
         (!carriers.shares_memory || carriers.num_threads < carriers.num_cores);
}

GradScales scales_of(const Config& config, int num_ranks) {
  if (config.gradient_allreduce_op == GradientReduceOp::kSum) return {};
  const double ranks = num_ranks;
  if (config.prescale_gradients) return {1 / ranks, 1, 1};
  const double before = 1 / config.gradient_predivide_factor;
  const double after = config.gradient_predivide_factor / ranks;
  // A power of two can be applied at any time without rounding, so it costs
  // no pass over memory of its own. Others are applied at once: a gradient
  // that was set must read back as it was.
  int exponent = 0;
  const bool is_power_of_two = std::frexp(after, &exponent) == 0.5;
  return is_power_of_two ? GradScales{before, 1, after}
                         : GradScales{before, after, 1};
}

GradReducerOptions reducer_options(const Config& config,
                                   const StagePolicy& policy,
                                   const std::vector<ShardedUnit*>& units,
                                   const Mesh& mesh) {
  GradReducerOptions options;
  options.bucket_numel = bucket_numel(config, units);
  options.comm_dtype = config.communication_data_type;
  if (mesh.sequence_parallel_size() > 1) {
    options.comm_dtype = config.seq_parallel_communication_data_type;
  }
  options.overlaps_backward =
      overlaps_backward(config.zero_optimization, carriers_of(mesh));
  options.all_reduces = !policy.reduces_to_owner;
  options.reduces_at_boundary = policy.reduces_at_boundary;
  options.allows_unused = config.zero_optimization.ignore_unused_parameters;
  if (config.zero_optimization.zero_quantized_gradients) {
    options.codec = kGradientCodec;
    const auto& loco = config.zero_optimization.zeropp_loco_param;
    const ErrorFeedback::Options defaults;
    if (loco.is_enabled()) {
      options.feedback = {
          static_cast<float>(loco.err_beta.value_or(defaults.beta)),
          loco.reset_T.value_or(defaults.reset_period)};
    }
  }
  const auto scales = scales_of(config, mesh.data_parallel_size());
  options.scale_before = static_cast<float>(scales.before);
  options.scale_after = static_cast<float>(scales.after);
  return options;
}

}  // namespace nfold
