#include "nfold/model_parallel.h"

#include "nfold/errors.h"
#include "param/param_state.h"

namespace nfold {

std::vector<Placement> placements_of(const torch::nn::Module& module) {
  std::vector<Placement> placements;
  for (const auto& item : module.named_parameters()) {
    placements.push_back(placement_in(module, item.key()));
  }
  return placements;
}

bool is_model_parallel_parameter(const torch::nn::Module& module,
                                 const std::string& param) {
  TORCH_CHECK_VALUE(module.named_parameters().contains(param),
                    "is_model_parallel_parameter: module ", module.name(),
                    " has no parameter '", param,
                    "'; give its path as named_parameters() has it");
  return placement_in(module, param).is_tensor_split;
}

}  // namespace nfold
