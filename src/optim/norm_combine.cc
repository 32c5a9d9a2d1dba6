#include "optim/norm_combine.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/norm.h"

namespace nfold {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double power_sum(const at::Tensor& tensor, double p) {
  if (p == 2)
    return kernels::norm_squared(tensor.contiguous()).sum_of_squares.value();
  return tensor.to(at::kDouble).abs().pow(p).sum().item<double>();
}

double largest_magnitude(const at::Tensor& tensor) {
  // NaN if an element is.
  return tensor.to(at::kDouble).abs().max().item<double>();
}

}  // namespace

bool is_valid_norm(double norm) { return std::isfinite(norm) && norm >= 0; }

double norm_of(at::ArrayRef<at::Tensor> tensors, double p) {
  TORCH_CHECK_VALUE(p > 0,
                    "norm_of: p: expected a number above 0 or infinity "
                    "but found ",
                    p);
  double total = 0;
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined() || tensor.numel() == 0) continue;
    const at::Tensor values = tensor.detach();
    if (std::isinf(p)) {
      const double magnitude = largest_magnitude(values);
      if (!std::isfinite(magnitude)) return kInvalidNorm;
      total = std::max(total, magnitude);
    } else {
      total += power_sum(values, p);
    }
  }
  if (!std::isfinite(total)) return kInvalidNorm;
  if (std::isinf(p)) return total;
  return p == 2 ? std::sqrt(total) : std::pow(total, 1 / p);
}

double combine_norms(at::ArrayRef<double> norms) {
  double total = 0;
  for (const double norm : norms) {
    if (!is_valid_norm(norm)) return kInfinity;
    total += norm * norm;
  }
  return std::sqrt(total);
}

double norm_of_square_sums(at::ArrayRef<double> sums) {
  double total = 0;
  for (const double sum : sums) {
    if (!is_valid_norm(sum)) return kInfinity;
    total += sum;
  }
  return std::sqrt(total);
}

}  // namespace nfold
