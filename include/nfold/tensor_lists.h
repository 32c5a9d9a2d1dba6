// File: nfold/tensor_lists.h
//
// Lists of tensors, as flat buffers and optimizers want them: padded, by
// dtype, without the empty ones.
//
//   auto padded = nfold::align_dense_tensors(grads, world_size);
//   for (auto& same_dtype : nfold::split_by_dtype(grads)) flatten(same_dtype);
//
// The lists given are never changed; the tensors in the results are the same
// tensors. Pure functions.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <vector>

namespace nfold {

// The list with zeros behind it, one tensor of the first one's dtype and
// device, so that the number of all elements is a multiple of `alignment`. The
// same list if it is already, or is empty. Raises c10::ValueError unless
// alignment is at least 1.
std::vector<at::Tensor> align_dense_tensors(std::vector<at::Tensor> tensors,
                                            std::int64_t alignment);

// Those of fp16, of fp32, of fp64 and of bf16, in this order and each in the
// order given, of any device and layout; lists that would be empty are left
// out. Raises c10::ValueError for another dtype.
std::vector<std::vector<at::Tensor>> split_by_dtype(
    const std::vector<at::Tensor>& tensors);

// Without tensors that have no element: some optimizers divide by their count.
std::vector<at::Tensor> filter_empty_parameters(
    const std::vector<at::Tensor>& params);
// The same for each group; groups without parameters are left out. The options
// of the others stay.
std::vector<torch::optim::OptimizerParamGroup> filter_empty_parameters(
    const std::vector<torch::optim::OptimizerParamGroup>& groups);

}  // namespace nfold
