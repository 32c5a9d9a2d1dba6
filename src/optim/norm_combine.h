// File: norm_combine.h
//
// Norms of lists of tensors, and one norm from many. Pure, on this rank.
//
//   const double norm = combine_norms({norm_of(group0), norm_of(group1)});
//   if (!is_valid_norm(norm)) skip_step();
//
// A norm is invalid when it is negative, infinite or NaN: a gradient somewhere
// was not finite. Combining anything with an invalid norm gives +infinity, so
// that it cannot be taken for a small number.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

namespace nfold {

// What norm_of returns when an element is not finite.
inline constexpr double kInvalidNorm = -1;

bool is_valid_norm(double norm);

// (sum of |x|^p over all elements)^(1/p); the largest |x| for p = +infinity.
// CPU tensors of any floating dtype, undefined ones are left out; computed in
// fp64. kInvalidNorm when an element is not finite. Raises c10::ValueError
// unless p is above 0.
double norm_of(at::ArrayRef<at::Tensor> tensors, double p = 2);

// Square root of the sum of squared norms: [3, 4] -> 5, [] -> 0.
double combine_norms(at::ArrayRef<double> norms);

// Square root of the sum, added in the order given. With one sum per shard in
// global order it has the same bits on every rank and in every stage.
double norm_of_square_sums(at::ArrayRef<double> sums);

}  // namespace nfold
