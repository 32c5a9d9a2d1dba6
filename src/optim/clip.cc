#include "optim/clip.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "optim/norm_combine.h"

namespace nfold {
namespace {

// Keeps the quotient finite for a norm of zero.
constexpr double kEpsilon = 1e-6;

void check_max_norm(double max_norm) {
  TORCH_CHECK_VALUE(max_norm >= 0,
                    "clipping: max_norm: expected a number that is not "
                    "negative but found ",
                    max_norm);
}

double scale_to(at::ArrayRef<at::Tensor> tensors, double norm, double max_norm,
                double eps) {
  check_max_norm(max_norm);
  if (!is_valid_norm(norm)) return std::numeric_limits<double>::infinity();
  const double coefficient = max_norm / (norm + eps);
  if (coefficient < 1) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined()) tensor.detach().mul_(coefficient);
    }
  }
  return norm;
}

}  // namespace

double clip_factor(double norm, double max_norm) {
  check_max_norm(max_norm);
  TORCH_CHECK_VALUE(is_valid_norm(norm),
                    "clip_factor: norm: expected a finite number that is not "
                    "negative but found ",
                    norm, "; skip the step instead");
  if (max_norm == 0) return 1;
  return std::max(1.0, (norm + kEpsilon) / max_norm);
}

double clip_grad_norm(at::ArrayRef<at::Tensor> params, double max_norm,
                      double p) {
  std::vector<at::Tensor> grads;
  for (const at::Tensor& param : params) {
    if (param.grad().defined()) grads.push_back(param.grad());
  }
  return scale_to(grads, norm_of(grads, p), max_norm, kEpsilon);
}

double clip_tensors_by_global_norm(at::ArrayRef<at::Tensor> tensors,
                                   const ClipOptions& options) {
  const double norm = options.norm ? *options.norm : norm_of(tensors);
  return scale_to(tensors, norm, options.max_norm, options.eps);
}

}  // namespace nfold
