#include "nfold/tensor_parallel.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/nn/init.h>

#include <cmath>
#include <utility>

#include "nfold/differentiable_collectives.h"
#include "parallel/lone_rank.h"

namespace nfold {
namespace {

// As torch::nn::Linear::reset_parameters, which draws the weight first.
void initialize_as_linear(at::Tensor weight, const at::Tensor& bias,
                          bool is_transposed) {
  torch::nn::init::kaiming_uniform_(is_transposed ? weight.t() : weight,
                                    std::sqrt(5));
  if (!bias.defined()) return;
  const auto fan_in = static_cast<double>(weight.size(is_transposed ? 0 : 1));
  const double bound = fan_in > 0 ? 1 / std::sqrt(fan_in) : 0;
  torch::nn::init::uniform_(bias, -bound, bound);
}

struct WeightAndBias {
  at::Tensor weight;
  at::Tensor bias;
};

WeightAndBias whole_linear(const ParallelLinearOptions& options) {
  at::NoGradGuard no_grad;
  WeightAndBias result;
  result.weight = options.is_transposed ? at::empty({options.in, options.out})
                                        : at::empty({options.out, options.in});
  if (options.has_bias) result.bias = at::empty({options.out});
  if (options.initialize) {
    options.initialize(result.weight, result.bias);
  } else {
    initialize_as_linear(result.weight, result.bias, options.is_transposed);
  }
  return result;
}

at::Tensor affine(const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, bool is_transposed) {
  if (!is_transposed) return at::linear(x, weight, bias);
  std::vector<std::int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(1);
  const auto rows = x.reshape({-1, weight.size(0)});
  return (bias.defined() ? at::addmm(bias, rows, weight) : at::mm(rows, weight))
      .view(sizes);
}

}  // namespace

std::int64_t size_per_rank(const Group* group, std::string_view what,
                           std::int64_t size) {
  if (is_alone(group)) return size;
  TORCH_CHECK_VALUE(size % group->size() == 0, "[rank ", group->global_rank(),
                    "] ", what, ": ", size, " do not divide by the ",
                    group->size(), " ranks of \"", group->name(),
                    "\". Change one of the two numbers.");
  return size / group->size();
}

at::Tensor part_of(Group* group, const at::Tensor& whole, TensorSplit split) {
  if (is_alone(group)) return whole;
  const std::int64_t block = whole.size(split.dim) / split.num_blocks;
  const std::int64_t size =
      size_per_rank(group, "elements of a tensor to split", block);
  // A copy even where a view would do, so that the whole is freed.
  return whole.unflatten(split.dim, {split.num_blocks, block})
      .narrow(split.dim + 1, group->rank() * size, size)
      .flatten(split.dim, split.dim + 1)
      .clone(at::MemoryFormat::Contiguous);
}

at::Tensor whole_of(Group* group, const at::Tensor& part, TensorSplit split) {
  if (is_alone(group)) return part;
  at::NoGradGuard no_grad;
  const std::int64_t size = part.size(split.dim) / split.num_blocks;
  return gather_from_group(group,
                           part.unflatten(split.dim, {split.num_blocks, size}),
                           split.dim + 1)
      .flatten(split.dim, split.dim + 1);
}

ColumnParallelLinearImpl::ColumnParallelLinearImpl(
    const ParallelLinearOptions& options, Group* group)
    : group_(group),
      is_transposed_(options.is_transposed),
      copies_input_(options.copies_input),
      num_blocks_(options.num_blocks) {
  TORCH_CHECK_VALUE(num_blocks_ >= 1 && options.out % num_blocks_ == 0,
                    "ColumnParallelLinear: ", options.out,
                    " outputs do not consist of num_blocks = ", num_blocks_,
                    " equal ones.");
  size_per_rank(group, "outputs of a ColumnParallelLinear (of each block)",
                options.out / num_blocks_);
  const WeightAndBias whole = whole_linear(options);
  weight_ = register_parameter(
      "weight", part_of(group, whole.weight, *split_of("weight")));
  if (!options.has_bias) return;
  bias_ =
      register_parameter("bias", part_of(group, whole.bias, *split_of("bias")));
}

at::Tensor ColumnParallelLinearImpl::forward(const at::Tensor& x) {
  return affine(copies_input_ ? copy_to_group(group_, x) : x, weight_, bias_,
                is_transposed_);
}

std::optional<TensorSplit> ColumnParallelLinearImpl::split_of(
    const std::string& param) const {
  if (is_alone(group_)) return std::nullopt;
  if (param == "weight") {
    return TensorSplit{.dim = is_transposed_ ? 1 : 0,
                       .num_blocks = num_blocks_};
  }
  if (param == "bias") return TensorSplit{.dim = 0, .num_blocks = num_blocks_};
  return std::nullopt;
}

RowParallelLinearImpl::RowParallelLinearImpl(
    const ParallelLinearOptions& options, Group* group)
    : group_(group), is_transposed_(options.is_transposed) {
  size_per_rank(group, "inputs of a RowParallelLinear", options.in);
  const WeightAndBias whole = whole_linear(options);
  weight_ = register_parameter(
      "weight", part_of(group, whole.weight, {.dim = is_transposed_ ? 0 : 1}));
  if (options.has_bias) bias_ = register_parameter("bias", whole.bias);
}

at::Tensor RowParallelLinearImpl::forward(const at::Tensor& x) {
  if (is_alone(group_)) return affine(x, weight_, bias_, is_transposed_);
  // The bias is added once, to the sum.
  const auto sum = reduce_from_group(
      group_, affine(x, weight_, at::Tensor(), is_transposed_));
  return bias_.defined() ? sum + bias_ : sum;
}

std::optional<TensorSplit> RowParallelLinearImpl::split_of(
    const std::string& param) const {
  if (is_alone(group_) || param != "weight") return std::nullopt;
  return TensorSplit{.dim = is_transposed_ ? 0 : 1};
}

std::optional<TensorSplit> split_of(const torch::nn::Module& module,
                                    const std::string& param) {
  if (const auto* splitter = dynamic_cast<const TensorSplitModule*>(&module)) {
    if (const auto split = splitter->split_of(param)) return split;
  }
  const std::size_t dot = param.find('.');
  if (dot == std::string::npos) return std::nullopt;
  const auto children = module.named_children();
  const auto* child = children.find(param.substr(0, dot));
  return child == nullptr ? std::nullopt
                          : split_of(**child, param.substr(dot + 1));
}

}  // namespace nfold
