#include "nfold/tensor_lists.h"

#include <ATen/ATen.h>

#include <array>

#include "nfold/errors.h"
#include "nfold/partition.h"

namespace nfold {

std::vector<at::Tensor> align_dense_tensors(std::vector<at::Tensor> tensors,
                                            std::int64_t alignment) {
  std::int64_t numel = 0;
  for (const auto& tensor : tensors) numel += tensor.numel();
  const auto padding = padding_numel(numel, alignment);
  if (padding > 0) {
    tensors.push_back(at::zeros({padding}, tensors.front().options()));
  }
  return tensors;
}

std::vector<std::vector<at::Tensor>> split_by_dtype(
    const std::vector<at::Tensor>& tensors) {
  constexpr std::array kOrder{at::kHalf, at::kFloat, at::kDouble,
                              at::kBFloat16};
  std::array<std::vector<at::Tensor>, kOrder.size()> by_dtype;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto found =
        std::find(kOrder.begin(), kOrder.end(), tensors[i].scalar_type());
    TORCH_CHECK_VALUE(found != kOrder.end(), "split_by_dtype: tensor ", i,
                      ": expected fp16, fp32, fp64 or bf16 but found ",
                      tensors[i].scalar_type());
    by_dtype[found - kOrder.begin()].push_back(tensors[i]);
  }
  std::vector<std::vector<at::Tensor>> lists;
  for (auto& list : by_dtype) {
    if (!list.empty()) lists.push_back(std::move(list));
  }
  return lists;
}

std::vector<at::Tensor> filter_empty_parameters(
    const std::vector<at::Tensor>& params) {
  std::vector<at::Tensor> kept;
  for (const auto& param : params) {
    if (param.numel() > 0) kept.push_back(param);
  }
  return kept;
}

std::vector<torch::optim::OptimizerParamGroup> filter_empty_parameters(
    const std::vector<torch::optim::OptimizerParamGroup>& groups) {
  std::vector<torch::optim::OptimizerParamGroup> kept;
  for (const auto& group : groups) {
    auto params = filter_empty_parameters(group.params());
    if (params.empty()) continue;
    kept.push_back(group);
    kept.back().params() = std::move(params);
  }
  return kept;
}

}  // namespace nfold
