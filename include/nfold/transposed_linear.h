// File: nfold/transposed_linear.h
//
// A linear layer made from one that keeps its weight the other way around, as
// the layers of some published models do ([in, out], to be multiplied from the
// right).
//
//   nfold::TransposedLinear linear(old->weight, old->bias);
//   auto y = linear->forward(x);            // x.matmul(old->weight) + bias
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace nfold {

// Turns a matrix around where it lies: its elements are reordered in their
// storage, and the result, [columns, rows] and contiguous, is a view of it. The
// tensor given has the new order and the old shape, so it should be dropped.
// Without autograd history. Raises c10::ValueError unless it is a contiguous
// matrix.
at::Tensor transpose_in_storage(const at::Tensor& matrix);

class TransposedLinearImpl : public torch::nn::Module {
 public:
  // transposed_weight: [in, out]; the parameter "weight" becomes a contiguous
  // copy of its transpose. bias: [out], registered as it is; undefined: none.
  // Raises c10::ValueError for other shapes.
  explicit TransposedLinearImpl(const at::Tensor& transposed_weight,
                                const at::Tensor& bias = {});

  // input: [..., in]. Returns [..., out].
  at::Tensor forward(const at::Tensor& input) const;

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], or undefined
};
TORCH_MODULE(TransposedLinear);

}  // namespace nfold
