// File: sum_tree.h
//
// Combines one contribution per rank into the result, in an order that depends
// on the number of contributions only: a balanced binary tree over their index,
// split at the largest power of two below the count, so ((0+1)+(2+3))+4 for
// five. An element's result is the same bits whichever range it is computed
// with, on every instruction set and thread count.
//
//   // my shard of a reduce-scatter over mapped peer buffers
//   sum_tree(my_shard, {peer0_shard, peer1_shard, peer2_shard});
//
// Callable from any thread; large ranges use at::parallel_for.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include "kernels/streaming.h"

namespace nfold::kernels {

// out[i] <- sum over inputs, in index order as above. Contiguous CPU tensors of
// one dtype and element count. fp32, fp16 and bf16 are added in fp32, fp64 in
// fp64, and rounded once to the dtype; int8, uint8, int32 and int64 wrap
// around. `out` may be any of the inputs, but must not overlap one otherwise.
// Needs memory for a few thousand elements. Raises c10::ValueError for tensors
// that do not fit, c10::NotImplementedError for other dtypes.
void sum_tree(at::Tensor out, at::ArrayRef<at::Tensor> inputs,
              Stores stores = Stores::kCached);

// As sum_tree with the maximum; NaN if an input is NaN.
void max_of(at::Tensor out, at::ArrayRef<at::Tensor> inputs,
            Stores stores = Stores::kCached);

}  // namespace nfold::kernels
