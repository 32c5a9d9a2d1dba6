#include "fetch/dispatch_interceptor.h"
#include "nfold/params.h"

namespace nfold {

std::vector<at::Tensor> get_inactive_params(
    const std::vector<at::Tensor>& params) {
  std::vector<at::Tensor> inactive;
  for (const auto& param : params) {
    if (!param.defined()) continue;
    const auto* unit = dispatch_interceptor().find(param).unit;
    if (unit != nullptr && unit->is_released()) {
      inactive.push_back(param);
    }
  }
  return inactive;
}

}  // namespace nfold
