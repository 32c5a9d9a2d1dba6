// File: norm.h
//
// The square sum of a tensor for a gradient norm, and where its first
// non-finite element is, in one pass.
//
//   const NormResult result = norm_squared(grad_shard);
//   if (result.first_non_finite >= 0) ...
//
// Squares are taken in fp64, where those of fp32, fp16 and bf16 are exact, and
// added without loss (compensated_sum.h). So the bits depend on the elements
// alone: pieces of a tensor give those of the whole, whoever holds them.
// Callable from any thread; large tensors use at::parallel_for.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

#include "kernels/compensated_sum.h"

namespace nfold::kernels {

inline constexpr std::int64_t kNormBlockNumel = 4096;

struct NormResult {
  // Not finite if an element is not, or if squares of fp64 elements are too
  // large for fp64.
  CompensatedSum sum_of_squares;
  // Index of the first infinite or NaN element, -1 if there is none.
  std::int64_t first_non_finite = -1;
};

// x: contiguous CPU tensor of fp32, fp64, fp16 or bf16. Raises c10::ValueError
// for another layout or device, c10::NotImplementedError for another dtype.
NormResult norm_squared(const at::Tensor& x);

}  // namespace nfold::kernels
