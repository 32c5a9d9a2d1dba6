// File: clip.h
//
// Gradient clipping by norm: the factor for gradients that are scaled anyway,
// and functions that scale tensors in place. Pure, on this rank.
//
//   const double factor = clip_factor(norm, config.gradient_clipping);
//   optimizer.step(1 / (loss_scale * factor));
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <optional>

namespace nfold {

// What gradients with this norm, the loss scale already taken out, have to be
// divided by: max(1, (norm + 1e-6) / max_norm). 1 for max_norm 0, which turns
// clipping off. Raises c10::ValueError for an invalid norm (see
// norm_combine.h), which no factor can mend.
double clip_factor(double norm, double max_norm);

// Scales the gradients of the parameters in place by
// min(1, max_norm / (norm + 1e-6)) and returns the p-norm they had. Parameters
// without gradient are left out. With a gradient that is not finite nothing is
// scaled and +infinity is returned.
double clip_grad_norm(at::ArrayRef<at::Tensor> params, double max_norm,
                      double p = 2);

struct ClipOptions {
  double max_norm = 1;
  // Empty: computed from the tensors.
  std::optional<double> norm = std::nullopt;
  double eps = 1e-6;
};

// Scales tensors in place by max_norm / (norm + eps) if that is below 1, and
// returns the norm. With an invalid norm nothing is scaled and +infinity is
// returned.
double clip_tensors_by_global_norm(at::ArrayRef<at::Tensor> tensors,
                                   const ClipOptions& options = {});

}  // namespace nfold
