// File: nfold/overflow.h
//
// Whether a gradient is infinite or NaN on any rank that must know.
//
//   nfold::CheckOverflow check({{.params = model->parameters()}},
//                              {.model = &tensor_group});
//   if (check.check()) skip_step();
//
// An Engine checks by itself, with the gradient norm, and names the element;
// this is for training loops without one. check and check_using_norm are
// collective: every rank of the groups they use must call them. Not
// thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <optional>
#include <vector>

#include "nfold/group.h"
#include "nfold/placement.h"

namespace nfold {

// Of any layout and dtype; of a sparse tensor the stored values are looked at.
// The elements are tested, not their sum, which may overflow by itself.
bool has_inf_or_nan(const at::Tensor& tensor);

struct OverflowParamGroup {
  std::vector<at::Tensor> params;
  // One for each parameter, or empty: every rank has the same parameters.
  std::vector<Placement> placements{};
};

// Null: there is no such group.
struct OverflowOptions {
  Group* world = nullptr;
  Group* data = nullptr;
  Group* model = nullptr;   // tensor (model) parallel
  Group* expert = nullptr;  // the largest expert group
  // Each rank has reduced a part of the gradients.
  bool is_reduce_scatter = false;
  // Backward leaves gradients that are equal on all data-parallel ranks.
  bool is_backward_all_reduce = true;
};

class CheckOverflow {
 public:
  // Raises c10::ValueError where the placements are not one for each
  // parameter.
  explicit CheckOverflow(std::vector<OverflowParamGroup> param_groups = {},
                         OverflowOptions options = {});

  // Some parameter is an expert, and not on every rank.
  bool has_moe_params() const { return has_moe_params_; }

  // Whether a gradient of these parameters, or of those of construction, is
  // not finite on this rank or on one of
  //   the expert group, where there are experts; then
  //   the world with is_reduce_scatter; else the model group, if there is one,
  //     and before it, without is_backward_all_reduce, the data group; else,
  //     without is_backward_all_reduce, the world.
  // Raises c10::ValueError if that asks for a group that was not given.
  bool check();
  bool check(const std::vector<OverflowParamGroup>& param_groups);

  // The same from norms, of which an invalid one (see norms.h) is an overflow:
  // over the expert group where there are experts, then over the model group
  // if there is one, else, if `reduce_overflow`, over the world.
  bool check_using_norm(at::ArrayRef<double> norms,
                        bool reduce_overflow = true);

 private:
  std::vector<OverflowParamGroup> param_groups_;
  OverflowOptions options_;
  bool has_moe_params_;
};

}  // namespace nfold
