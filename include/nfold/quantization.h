// File: nfold/quantization.h
//
// Numbers in 8 or 4 bits, in blocks: each block is coded by itself, with a
// scale, so that an outlier coarsens its own block and nothing else.
//
//   const nfold::BlockCodec codec{.bits = 8};
//   at::Tensor encoded = nfold::quantized(weights, codec);    // bytes
//   at::Tensor about = nfold::dequantized(encoded, weights.numel(),
//                                         at::kBFloat16, codec);
//
// [Note: Codes]
// b bits have the levels -2^(b-1) to 2^(b-1) - 1. With m the element of a
// block that is largest in magnitude:
//   symmetric    step |m| / 2^(b-1); levels count from zero, and the sign of
//                the scale makes m the lowest level. So m and zero come back
//                exactly. An error is at most |m| / 2^b, and up to twice that
//                only for elements within half a step of -m, which has no
//                level of its own. One fp32 per block.
//   asymmetric   step (max - min) / (2^b - 1), levels count from min. An error
//                is at most (max - min) / (2 (2^b - 1)). Two fp32 per block.
// Plus what rounding in fp32 and to the result's dtype is worth. Steps are at
// least 2^-126, so blocks of smaller numbers lose accuracy, at most 2^-127.
//
// Rounding is to nearest even. What was quantized symmetrically and comes back
// in the dtype that it came from has the same bits when that is repeated.
//
// A block with an infinity or NaN comes back as NaN as a whole: what cannot be
// represented must not look like a number. So does an asymmetric block whose
// range exceeds the largest fp32.
//
// Bytes: blocks x 4 (8 if asymmetric) for the scales, then the codes, up to a
// multiple of 4. An element of fp32 takes 4 bytes before, and with the default
// blocks 1.016 at 8 bits and 0.531 at 4: 3.94 and 7.53 times less.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

namespace nfold {

struct BlockCodec {
  int bits = 8;  // or 4
  bool is_symmetric = true;
  std::int64_t block_numel = 256;  // 1 to kMaxBlockNumel

  bool operator==(const BlockCodec&) const = default;
};
inline constexpr std::int64_t kMaxBlockNumel = 4096;

// What weights travel in, and gradients: few scales, or they would be what is
// sent. The smaller blocks make up for fewer levels.
inline constexpr BlockCodec kWeightCodec{.bits = 8, .block_numel = 256};
inline constexpr BlockCodec kGradientCodec{.bits = 4, .block_numel = 128};

// Of so many elements. Raises c10::ValueError for a codec that there is not.
std::int64_t encoded_bytes(std::int64_t numel, const BlockCodec& codec);

// Any contiguous CPU tensor of fp32, fp16 or bf16; the result is uint8,
// [encoded_bytes]. Raises c10::ValueError and c10::NotImplementedError for
// others.
at::Tensor quantized(const at::Tensor& x, const BlockCodec& codec = {});

// Flat [numel]. Raises c10::ValueError if `encoded` is not of that many.
at::Tensor dequantized(const at::Tensor& encoded, std::int64_t numel,
                       at::ScalarType dtype, const BlockCodec& codec = {});

}  // namespace nfold
