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
    case 3:
      policy.shards_optimizer = true;
      policy.shards_params = true;
      policy.reduces_to_owner = zero.reduce_scatter;
      return policy;
    default:
      TORCH_CHECK_VALUE(false,
                        "zero_optimization.stage: expected 0 to 3 but "
                        "found ",
                        zero.stage);
  }
}

}  // namespace nfold
