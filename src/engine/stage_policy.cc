#include "engine/stage_policy.h"

#include <c10/util/Exception.h>

namespace nfold {

StagePolicy stage_policy(const Config& config) {
  const auto& zero = config.zero_optimization;
  StagePolicy policy;
  switch (zero.stage) {
    case 0:
      policy.reduces_at_boundary = zero.reduce_at_boundary;
      return policy;
    case 1:
      policy.shards_optimizer = true;
      policy.reduces_to_owner = zero.reduce_scatter;
      policy.reduces_at_boundary = zero.reduce_at_boundary;
      return policy;
    case 2:
      policy.shards_optimizer = true;
      policy.reduces_to_owner = zero.reduce_scatter;
      return policy;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "zero_optimization.stage: stage ", zero.stage,
          " is not available in this version; use stage 0, 1 or 2");
  }
}

}  // namespace nfold
