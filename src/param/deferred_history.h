// File: deferred_history.h
//
// Autograd history of tensors whose values come later. The operator that makes
// such a tensor from one that requires a gradient has not run, so there is
// nothing to differentiate; but the tensor must require a gradient as it would
// eagerly, and say why backward through it fails.
#pragma once

#include <ATen/core/TensorBody.h>

#include <string>

namespace nfold {

// Makes `result` require a gradient, as something computed from `source`, which
// does. Backward through it raises c10::NotImplementedError.
void give_history(const at::Tensor& result, const at::Tensor& source,
                  const std::string& operator_name);

// The same for a tensor that the operator has changed in place.
void give_in_place_history(const at::Tensor& result, const at::Tensor& source,
                           const std::string& operator_name);

// Raises what autograd raises for an operator that changes this tensor in
// place, if it may not.
void check_in_place(const at::Tensor& tensor, bool needs_history);

}  // namespace nfold
