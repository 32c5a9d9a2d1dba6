// File: nfold/quantized_weight.h
//
// A weight that rests in 8 or 4 bits, in groups along one of its dimensions:
// for models that are only run, and too large for their memory. nfold does not
// exchange the layers of a model; a module of yours keeps one of these and
// decodes it when it is used.
//
//   nfold::QuantizedWeight weight(linear->weight, {.num_bits = 4,
//                                                  .group_size = 64,
//                                                  .group_dim = 1});
//   at::Tensor y = at::linear(x, weight.dequantized());
//
// The codes are asymmetric (nfold/quantization.h): an error is at most the
// range of its group over 2 (2^num_bits - 1).
//
// Source: DeepSpeed's quantized_initialization.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <vector>

#include "nfold/quantization.h"

namespace nfold {

struct QuantizedWeightOptions {
  int num_bits = 8;  // or 4
  // Elements of a group; divides the dimension. Up to kMaxBlockNumel.
  std::int64_t group_size = 512;
  std::int64_t group_dim = 0;
};

class QuantizedWeight {
 public:
  // A CPU tensor of fp32, fp16 or bf16. Raises c10::ValueError, with the
  // numbers, for a dimension that there is not or that groups do not divide.
  explicit QuantizedWeight(const at::Tensor& weight,
                           QuantizedWeightOptions options = {});

  // With the sizes and the dtype of the weight, contiguous.
  at::Tensor dequantized() const;
  const std::vector<std::int64_t>& sizes() const { return sizes_; }
  std::int64_t bytes() const { return encoded_.numel(); }

 private:
  BlockCodec codec_;
  std::vector<std::int64_t> sizes_;
  std::int64_t group_dim_;
  at::ScalarType dtype_;
  at::Tensor encoded_;
};

}  // namespace nfold
