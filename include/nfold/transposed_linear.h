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
