// File: kernel_testing.h
//
// What the tests of this folder share: random tensors with awkward values and
// bitwise comparison.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <random>

namespace nfold::kernels {

// Numbers of very different size, with zeros of both signs, subnormals and, if
// asked for, infinities and NaN between them. Integers: any bits.
at::Tensor awkward_tensor(std::int64_t numel, at::ScalarType dtype,
                          std::mt19937& random, bool with_non_finite = true);

// Same dtype and bits; two NaNs count as equal whatever their payload.
bool is_bitwise_equal(const at::Tensor& a, const at::Tensor& b);

}  // namespace nfold::kernels
