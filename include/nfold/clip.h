// File: nfold/clip.h
//
// Gradient clipping by norm: the factor for gradients that are scaled anyway,
// and functions that scale tensors in place.
//
//   nfold::clip_grad_norm(model->parameters(), 1.0);
//
//   const double factor = nfold::clip_factor(norm, config.gradient_clipping);
//   optimizer.step(1 / (loss_scale * factor));
//
// An Engine clips by itself; these are for training loops without one. Nothing
// is ever scaled by an invalid norm (see norms.h): a coefficient made from -1
// would turn gradients around. Functions that are given groups are collective,
// as those of norms.h. Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <optional>

#include "nfold/norms.h"

namespace nfold {

// What gradients with this norm, the loss scale already taken out, have to be
// divided by: max(1, (norm + 1e-6) / max_norm). 1 for max_norm 0, which turns
// clipping off. Raises c10::ValueError for an invalid norm, which no factor
// can mend.
double clip_factor(double norm, double max_norm);

// Scales the gradients of the parameters in place by
// min(1, max_norm / (norm + 1e-6)) and returns the p-norm they had. Parameters
// without gradient are left out. With a gradient that is not finite nothing is
// scaled and +infinity is returned.
//
// Parameters count once in the model group, as the placements of the options
// say. With a data group the norms of its ranks are averaged, so that ranks
// that hold different experts scale by the same number: the mean of their
// norms, not the norm of all. Pipeline and expert groups are not used.
double clip_grad_norm(at::ArrayRef<at::Tensor> params, double max_norm,
                      const NormOptions& options = {});

struct ClipOptions {
  double max_norm = 1;
  // Empty: get_global_norm_of_tensors over the groups below.
  std::optional<double> norm = std::nullopt;
  double eps = 1e-6;
  NormGroups groups{};
  // Computes the norm and scales as graphs: the tensors must then stay where
  // they are from call to call. May be null.
  GraphReplay* graph = nullptr;
};

// Scales tensors in place by max_norm / (norm + eps) if that is below 1, and
// returns the norm. With an invalid norm nothing is scaled and +infinity is
// returned.
double clip_tensors_by_global_norm(at::ArrayRef<at::Tensor> tensors,
                                   const ClipOptions& options = {});

}  // namespace nfold
