// File: quantize.h
//
// Blockwise codes of 8 and 4 bits (nfold/quantization.h has the definition) for
// tensors that exist already, and what a quantized reduction needs besides.
//
//   quantize(message, grad_part, kGradientCodec);
//   ...
//   dequantize_sum(sum, messages_of_all_ranks, kGradientCodec);
//
// Every block gives the same bits on every instruction set and thread count.
// All tensors are flat or at least contiguous, on the CPU; `encoded` are uint8,
// of encoded_bytes(numel, codec) elements, and begin at a multiple of 4 bytes.
// Others are fp32, fp16 or bf16. Raises c10::ValueError for tensors that do not
// fit, c10::NotImplementedError for other dtypes. Callable from any thread;
// large ranges use at::parallel_for.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include "nfold/quantization.h"

namespace nfold::kernels {

void quantize(at::Tensor encoded, const at::Tensor& x, const BlockCodec& codec);

void dequantize(at::Tensor out, const at::Tensor& encoded,
                const BlockCodec& codec);

// out <- sum over inputs in the order of sum_tree.h, taken in fp32 and rounded
// once. Needs memory for one block of each input and thread.
void dequantize_sum(at::Tensor out, at::ArrayRef<at::Tensor> encoded,
                    const BlockCodec& codec);

// What the error of a quantization is kept in until the next one.
BlockCodec error_codec_of(const BlockCodec& codec);

// Error feedback: encodes y = x + e, where `error` holds e, and then keeps
// beta * e + (1 - beta) * (y - what y comes back as) in it. A block that is not
// finite leaves no error. Pass over memory once. `error` has the bytes of
// error_codec_of(codec); all zeros are an error of zero.
// Source: LoCo (Xie et al., 2024).
void quantize_with_feedback(at::Tensor encoded, at::Tensor error,
                            const at::Tensor& x, const BlockCodec& codec,
                            float beta);

// Multiplies the numbers that `encoded` stands for.
void scale_encoded(at::Tensor encoded, std::int64_t numel,
                   const BlockCodec& codec, float factor);

}  // namespace nfold::kernels
