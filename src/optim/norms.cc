#include "nfold/norms.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nfold/collectives.h"
#include "optim/norm_power.h"

namespace nfold {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Identities of graphs.
constexpr int kWeightNormSite = 0;
constexpr int kFlattenedNormSite = 0;
constexpr int kTensorsNormSite = 0;

double norm_or_invalid(double power, double p) {
  const double norm = norm_from_power(power, p);
  return is_valid_norm(norm) ? norm : kInvalidNorm;
}

// A copy of a flat gradient with zeros in the given ranges.
at::Tensor without_ranges(const at::Tensor& grad,
                          const std::vector<IndexRange>& ranges) {
  const auto flat = grad.detach().reshape({-1}).clone();
  for (const auto& range : ranges) {
    TORCH_CHECK_VALUE(
        0 <= range.begin && range.begin <= range.end &&
            range.end <= flat.numel(),
        "get_flattened_grad_norm: masks: expected ranges inside of [0, ",
        flat.numel(), ") but found [", range.begin, ", ", range.end, ")");
    flat.narrow(0, range.begin, range.end - range.begin).zero_();
  }
  return flat;
}

// Among several lists of one call, that of this index.
double norm_of_list(at::ArrayRef<at::Tensor> tensors,
                    const NormOptions& options, double index) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK_VALUE(tensors[i].defined(),
                      "get_global_norm_of_tensors: tensor ", i,
                      ": expected a tensor but found an undefined one");
  }
  const NormGroups& groups = options.groups;
  double power =
      norm_power(tensors, options.p, {options.graph, &kTensorsNormSite, index});
  const bool is_split =
      groups.expert == nullptr || groups.expert_tensor_size > 1;
  power = reduced_power(power, options.p,
                        is_split ? groups.model : groups.pipeline);
  return norm_or_invalid(reduced_power(power, options.p, groups.expert),
                         options.p);
}

}  // namespace

bool is_valid_norm(double norm) { return std::isfinite(norm) && norm >= 0; }

double norm_of(at::ArrayRef<at::Tensor> tensors, double p) {
  return norm_or_invalid(norm_power(tensors, p), p);
}

double combine_norms(at::ArrayRef<double> norms, double p) {
  check_norm_power(p);
  double power = 0;
  for (const double norm : norms) {
    if (!is_valid_norm(norm)) return kInfinity;
    power = std::isinf(p) ? std::max(power, norm) : power + std::pow(norm, p);
  }
  return norm_from_power(power, p);
}

void mask_nan_or_inf(const at::Tensor& tensor, double value) {
  const auto values = tensor.detach();
  values.masked_fill_(at::isfinite(values).logical_not(), value);
}

double get_weight_norm(at::ArrayRef<at::Tensor> params,
                       const NormOptions& options) {
  const double power = norm_power(counted_once(params, options), options.p,
                                  {options.graph, &kWeightNormSite});
  return norm_or_invalid(reduced_power(power, options.p, options.groups.model),
                         options.p);
}

std::int64_t get_grad_zeros(at::ArrayRef<at::Tensor> params,
                            const NormOptions& options) {
  std::int64_t num_zeros = 0;
  for (const at::Tensor& grad : counted_once(grads_of(params), options)) {
    if (!grad.defined()) continue;
    num_zeros += grad.numel() - at::count_nonzero(grad).item<std::int64_t>();
  }
  if (options.groups.model == nullptr) return num_zeros;
  const auto total = at::full({1}, num_zeros, at::kLong);
  all_reduce(*options.groups.model, total).wait();
  return total.item<std::int64_t>();
}

double get_flattened_grad_norm(
    at::ArrayRef<at::Tensor> params, const NormOptions& options,
    const std::vector<std::vector<IndexRange>>& masks) {
  TORCH_CHECK_VALUE(masks.empty() || masks.size() == params.size(),
                    "get_flattened_grad_norm: masks: expected one for each of "
                    "the ",
                    params.size(), " parameters or none but found ",
                    masks.size());
  auto grads = grads_of(params);
  for (std::size_t i = 0; i < masks.size(); ++i) {
    if (!grads[i].defined() || masks[i].empty()) continue;
    TORCH_CHECK_VALUE(options.graph == nullptr,
                      "get_flattened_grad_norm: a graph cannot take masks: the "
                      "masked copies would be elsewhere in each call");
    grads[i] = without_ranges(grads[i], masks[i]);
  }
  const double power =
      norm_power(grads, options.p, {options.graph, &kFlattenedNormSite});
  return norm_or_invalid(reduced_power(power, options.p, options.groups.model),
                         options.p);
}

double get_global_norm_of_tensors(at::ArrayRef<at::Tensor> tensors,
                                  const NormOptions& options) {
  return norm_of_list(tensors, options, /*index=*/0);
}

double get_norm_with_moe_layers(
    double non_expert_norm,
    const std::map<std::string, ExpertTensors>& expert_tensors,
    const NormOptions& options) {
  std::vector<double> norms{non_expert_norm};
  for (const auto& [name, experts] : expert_tensors) {
    NormOptions of_group = options;
    of_group.groups.expert = experts.group;
    // Groups whose experts have the same shapes are different graphs.
    norms.push_back(norm_of_list(experts.tensors, of_group,
                                 static_cast<double>(norms.size())));
  }
  const double norm = combine_norms(norms, options.p);
  return is_valid_norm(norm) ? norm : kInvalidNorm;
}

double get_norm_with_moe_layers_fast(double norm, Group& group) {
  // Infinity, unlike -1, is still there in the sum.
  const double part = is_valid_norm(norm) ? norm / group.size() : kInfinity;
  const double mean = reduced_power(part, /*p=*/1, &group);
  return is_valid_norm(mean) ? mean : kInfinity;
}

}  // namespace nfold
