// File: tensor_check.h
//
// Checks of the tensors a kernel gets. Each names the kernel and the argument.
//
//   const Element element = checked_element(out, "sum_tree", "out");
//
// Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>

#include "kernels/loops.h"

namespace nfold::kernels {

// The tensor's element type. Raises c10::ValueError when the tensor is not
// defined, not dense and contiguous or not on the CPU, and
// c10::NotImplementedError for a dtype that no kernel has.
Element checked_element(const at::Tensor& tensor, const char* kernel,
                        const char* argument);

// As above, and raises c10::NotImplementedError for integers.
Element checked_float_element(const at::Tensor& tensor, const char* kernel,
                              const char* argument);

// Raises c10::ValueError unless the tensor has this many elements.
void check_numel(const at::Tensor& tensor, std::int64_t numel,
                 const char* kernel, const char* argument);

std::int64_t bytes_of(Element element);

}  // namespace nfold::kernels
