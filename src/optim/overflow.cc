#include "nfold/overflow.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "kernels/non_finite.h"
#include "nfold/collectives.h"
#include "nfold/norms.h"

namespace nfold {
namespace {

at::Tensor stored_values(const at::Tensor& tensor) {
  const auto values =
      tensor.is_complex() ? at::view_as_real(tensor.detach()) : tensor.detach();
  // values() refuses sparse tensors that were not coalesced.
  if (values.layout() == at::kSparse) return values._values();
  return values.layout() == at::kStrided ? values : values.values();
}

bool contains_experts(const std::vector<OverflowParamGroup>& groups) {
  bool has_experts = false;
  for (const auto& group : groups) {
    TORCH_CHECK_VALUE(
        group.placements.empty() ||
            group.placements.size() == group.params.size(),
        "CheckOverflow: placements: expected one for each of the ",
        group.params.size(), " parameters or none but found ",
        group.placements.size());
    has_experts = has_experts ||
                  std::any_of(group.placements.begin(), group.placements.end(),
                              [](const Placement& placement) {
                                return placement.expert_size > 1;
                              });
  }
  return has_experts;
}

bool any_over(Group* group, const char* name, bool is_here) {
  TORCH_CHECK_VALUE(group != nullptr, "CheckOverflow: expected the ", name,
                    " group but found none; set OverflowOptions::", name);
  const auto flag = at::full({1}, is_here ? 1 : 0, at::kByte);
  all_reduce(*group, flag, ReduceOp::kMax).wait();
  return flag.item<int>() != 0;
}

}  // namespace

bool has_inf_or_nan(const at::Tensor& tensor) {
  if (at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true)) {
    return false;
  }
  const auto values = stored_values(tensor);
  return kernels::first_non_finite(values.contiguous().view({-1})) >= 0;
}

CheckOverflow::CheckOverflow(std::vector<OverflowParamGroup> param_groups,
                             OverflowOptions options)
    : param_groups_(std::move(param_groups)),
      options_(options),
      has_moe_params_(contains_experts(param_groups_)) {}

bool CheckOverflow::check() { return check(param_groups_); }

bool CheckOverflow::check(const std::vector<OverflowParamGroup>& param_groups) {
  bool is_found = false;
  for (const auto& group : param_groups) {
    for (const at::Tensor& param : group.params) {
      const at::Tensor& grad = param.grad();
      is_found = is_found || (grad.defined() && has_inf_or_nan(grad));
    }
  }
  if (contains_experts(param_groups)) {
    is_found = any_over(options_.expert, "expert", is_found);
  }
  if (options_.is_reduce_scatter) {
    return any_over(options_.world, "world", is_found);
  }
  if (options_.model != nullptr) {
    if (!options_.is_backward_all_reduce) {
      is_found = any_over(options_.data, "data", is_found);
    }
    return any_over(options_.model, "model", is_found);
  }
  return options_.is_backward_all_reduce
             ? is_found
             : any_over(options_.world, "world", is_found);
}

bool CheckOverflow::check_using_norm(at::ArrayRef<double> norms,
                                     bool reduce_overflow) {
  bool is_found = !std::all_of(norms.begin(), norms.end(), is_valid_norm);
  if (has_moe_params_) is_found = any_over(options_.expert, "expert", is_found);
  if (options_.model != nullptr) {
    return any_over(options_.model, "model", is_found);
  }
  // No barrier is needed after it: every rank has entered when it returns.
  return reduce_overflow ? any_over(options_.world, "world", is_found)
                         : is_found;
}

}  // namespace nfold
