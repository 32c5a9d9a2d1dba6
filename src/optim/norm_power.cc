#include "optim/norm_power.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "kernels/norm.h"
#include "nfold/collectives.h"

namespace nfold {
namespace {

kernels::CompensatedSum power_sum(const at::Tensor& tensor, double p) {
  if (p == 2) return kernels::norm_squared(tensor.contiguous()).sum_of_squares;
  return {tensor.to(at::kDouble).abs().pow(p).sum().item<double>()};
}

double largest_magnitude(const at::Tensor& tensor) {
  // NaN if an element is.
  return tensor.to(at::kDouble).abs().max().item<double>();
}

// The same by operators alone, as a graph needs it.
at::Tensor power_by_operators(at::ArrayRef<at::Tensor> tensors, double p) {
  auto total = at::zeros({}, at::kDouble);
  for (const auto& tensor : tensors) {
    const auto norm =
        at::linalg_vector_norm(tensor, p, at::OptionalIntArrayRef(),
                               /*keepdim=*/false, at::kDouble);
    total = std::isinf(p) ? at::maximum(total, norm) : total.add(norm.pow(p));
  }
  return total;
}

void check_one_each(std::size_t num_given, std::size_t num_tensors,
                    const char* what) {
  TORCH_CHECK_VALUE(num_given == 0 || num_given == num_tensors, "norm: ", what,
                    ": expected one for each of the ", num_tensors,
                    " tensors or none but found ", num_given);
}

}  // namespace

void check_norm_power(double p) {
  TORCH_CHECK_VALUE(p > 0,
                    "norm: p: expected a number above 0 or infinity but "
                    "found ",
                    p);
}

double norm_power(at::ArrayRef<at::Tensor> tensors, double p,
                  const PowerGraph& as_graph) {
  check_norm_power(p);
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined() && tensor.numel() > 0) {
      inputs.push_back(tensor.detach());
    }
  }
  if (as_graph.graph != nullptr) {
    const auto results = as_graph.graph->run(
        {as_graph.identity, inputs, {p, as_graph.index}},
        [&] { return std::vector<at::Tensor>{power_by_operators(inputs, p)}; });
    return results[0].item<double>();
  }
  if (std::isinf(p)) {
    double largest = 0;
    for (const at::Tensor& input : inputs) {
      const double magnitude = largest_magnitude(input);
      if (!std::isfinite(magnitude)) return magnitude;
      largest = std::max(largest, magnitude);
    }
    return largest;
  }
  kernels::CompensatedSum total;
  for (const at::Tensor& input : inputs) total.add(power_sum(input, p));
  return total.value();
}

double norm_from_power(double power, double p) {
  if (std::isinf(p)) return power;
  return p == 2 ? std::sqrt(power) : std::pow(power, 1 / p);
}

double reduced_power(double power, double p, Group* group) {
  if (group == nullptr) return power;
  const auto value = at::full({1}, power, at::kDouble);
  all_reduce(*group, value, std::isinf(p) ? ReduceOp::kMax : ReduceOp::kSum)
      .wait();
  return value.item<double>();
}

std::vector<at::Tensor> counted_once(at::ArrayRef<at::Tensor> tensors,
                                     const NormOptions& options) {
  check_one_each(options.placements.size(), tensors.size(), "placements");
  check_one_each(options.is_pipeline_replica.size(), tensors.size(),
                 "is_pipeline_replica");
  const Group* model = options.groups.model;
  const bool counts_copies = model == nullptr || model->rank() == 0;
  std::vector<at::Tensor> counted;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const bool is_split =
        !options.placements.empty() && options.placements[i].is_tensor_split;
    const bool is_replica =
        !options.is_pipeline_replica.empty() && options.is_pipeline_replica[i];
    if (!is_replica && (is_split || counts_copies)) {
      counted.push_back(tensors[i]);
    }
  }
  return counted;
}

std::vector<at::Tensor> grads_of(at::ArrayRef<at::Tensor> params) {
  std::vector<at::Tensor> grads;
  grads.reserve(params.size());
  for (const at::Tensor& param : params) grads.push_back(param.grad());
  return grads;
}

}  // namespace nfold
