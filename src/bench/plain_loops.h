// File: plain_loops.h
//
// The yardsticks of a benchmark: what memory gives to loops that do next to
// nothing with what they read.
//
//   copy_bytes(to, from);                    // memcpy, in parallel
//   update_in_place({a, b, c, d}, 3);        // reads 4 arrays, writes a, b, c
//   read_all(a);
//
// Contiguous CPU tensors of one element count; at::parallel_for splits them as
// it does for the kernels. The loops use the kernels' instruction set
// (kernels/simd.h). Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

namespace nfold::bench {

// Same number of bytes, any dtype. Raises c10::ValueError otherwise.
void copy_bytes(const at::Tensor& to, const at::Tensor& from);

// Moves each of the first num_written arrays half the way to the mean of all.
// fp32. Raises c10::ValueError for numbers of arrays that no benchmark here
// needs (1 of 1, 1 of 2, 2 of 3, 1 of 4, 3 of 4) and tensors that do not fit.
void update_in_place(at::ArrayRef<at::Tensor> arrays, int num_written);

// The sum of all elements; fp32.
double read_all(const at::Tensor& array);

}  // namespace nfold::bench
