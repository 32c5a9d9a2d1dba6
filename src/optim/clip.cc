#include "nfold/clip.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "optim/norm_power.h"

namespace nfold {
namespace {

// Keeps the quotient finite for a norm of zero.
constexpr double kEpsilon = 1e-6;

constexpr int kCoefficientSite = 0;
constexpr int kScaleSite = 0;
constexpr int kClipNormSite = 0;

void check_max_norm(double max_norm) {
  TORCH_CHECK_VALUE(max_norm >= 0,
                    "clipping: max_norm: expected a number that is not "
                    "negative but found ",
                    max_norm);
}

void scale_by(const std::vector<at::Tensor>& tensors, double coefficient,
              GraphReplay* graph) {
  if (graph == nullptr) {
    for (const at::Tensor& tensor : tensors) tensor.mul_(coefficient);
    return;
  }
  // A replay multiplies by what is in a tensor of the graph's own.
  const auto factor = graph->run({&kCoefficientSite}, [] {
    return std::vector<at::Tensor>{at::zeros({}, at::kDouble)};
  })[0];
  factor.fill_(coefficient);
  std::vector<at::Tensor> inputs = tensors;
  inputs.push_back(factor);
  graph->run({&kScaleSite, inputs}, [&] {
    for (const at::Tensor& tensor : tensors) tensor.mul_(factor);
    return std::vector<at::Tensor>{};
  });
}

double scale_to(at::ArrayRef<at::Tensor> tensors, double norm,
                const ClipOptions& options) {
  check_max_norm(options.max_norm);
  if (!is_valid_norm(norm)) return std::numeric_limits<double>::infinity();
  const double coefficient = options.max_norm / (norm + options.eps);
  if (coefficient < 1) {
    std::vector<at::Tensor> values;
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined()) values.push_back(tensor.detach());
    }
    scale_by(values, coefficient, options.graph);
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
                      const NormOptions& options) {
  const auto grads = grads_of(params);
  const double power = norm_power(counted_once(grads, options), options.p,
                                  {options.graph, &kClipNormSite});
  double norm = norm_from_power(
      reduced_power(power, options.p, options.groups.model), options.p);
  if (options.groups.data != nullptr) {
    norm = get_norm_with_moe_layers_fast(norm, *options.groups.data);
  }
  return scale_to(
      grads, norm,
      {.max_norm = max_norm, .eps = kEpsilon, .graph = options.graph});
}

double clip_tensors_by_global_norm(at::ArrayRef<at::Tensor> tensors,
                                   const ClipOptions& options) {
  const double norm =
      options.norm
          ? *options.norm
          : get_global_norm_of_tensors(
                tensors, {.groups = options.groups, .graph = options.graph});
  return scale_to(tensors, norm, options);
}

}  // namespace nfold
