// File: cast_copy.h
//
// Copies between dtypes with a factor, and adds with a factor. Used to cast a
// contribution before it is summed, to average afterwards, and to write
// low-precision parameters from master weights.
//
//   scaled_cast(send_buffer, grad, 1.0F / world_size);
//   accumulate(grad_shard, reduced, 1.0F);
//
// Elementwise: an element's result is the same bits whichever range it is
// computed with, on every instruction set and thread count. Rounding is to
// nearest even; NaN stays NaN. Callable from any thread; large ranges use
// at::parallel_for.
#pragma once

#include <ATen/core/TensorBody.h>

namespace nfold::kernels {

// destination <- source * scale. Contiguous CPU tensors of fp32, fp64, fp16 or
// bf16 in any combination, with the same element count. The product is taken in
// fp32, or in fp64 if one of the two is fp64, then rounded to the destination.
// With scale 1 a plain cast; for equal dtypes also of integers, a copy.
// The tensors may be the same but must not overlap otherwise. Raises
// c10::ValueError for tensors that do not fit, c10::NotImplementedError for
// other dtypes.
void scaled_cast(at::Tensor destination, const at::Tensor& source,
                 float scale = 1.0F);

// accumulator <- accumulator + x * scale. Tensors as above. Product and sum are
// taken in fp32 (fp64 if one is fp64) and rounded one after the other, so that
// scaling first and adding later gives the same bits.
void accumulate(at::Tensor accumulator, const at::Tensor& x,
                float scale = 1.0F);

}  // namespace nfold::kernels
