// File: non_finite.h
//
// Finds the first infinity or NaN of a tensor, so that an error can name it.
// Reads each element once; runs at memory speed where all are finite.
//
//   const auto element = first_non_finite(grad.flatten());  // -1: all finite
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

namespace nfold::kernels {

// Index of the first non-finite element, or -1. A contiguous 1-D CPU tensor of
// fp32, fp64, fp16 or bf16. Raises c10::ValueError for another layout,
// c10::NotImplementedError for another dtype. Callable from any thread.
std::int64_t first_non_finite(const at::Tensor& x);

}  // namespace nfold::kernels
