// File: nfold/collectives.h
//
// Collectives as free functions over a Group. Each returns at once with a
// Pending; the tensors must stay alive and untouched until its wait() has
// returned. All ranks of the group must call each, in the same order, with
// the same dtype and element count; anything else is an error on every rank
// that names the rank, the group and both collectives.
//
//   auto pending = nfold::all_reduce(group, tensor);
//   ...                                     // compute something else
//   pending.wait();                         // now tensor may be read
//
// Tensors are contiguous CPU tensors; where several are given they have one
// dtype. Every function raises c10::ValueError for tensors that do not fit,
// before anything is sent, and c10::DistBackendError if the group has failed
// before; what fails later is raised by Pending::wait. Callable from any
// thread, as long as all ranks issue in one order.
//
// Sums are taken in fp32 (fp64 for fp64; integers wrap around) in the order of
// a balanced binary tree over the rank index, then rounded once to the
// tensor's dtype. The tree splits ranks [a, b) at a + the largest power of two
// below b - a: ((0+1)+(2+3))+4 for five. So the result depends neither on
// message size nor on how a tensor was split into collectives, and all ranks
// hold the same bits.
//
// Bytes sent per rank, with N ranks and a full tensor of B bytes:
//   all_gather, reduce_scatter, all_to_all   B (N-1)/N
//   all_reduce                              2B (N-1)/N
//   broadcast                                B on the source's behalf, N-1
//                                            times B on the source
//   barrier                                  0
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "nfold/group.h"

namespace nfold {

// The result of a collective under way. Movable. Destroying one that was not
// waited for waits and drops its error, so that no tensor is freed under the
// transport; the error is raised again by the group's next collective.
class Pending {
 public:
  class State;

  Pending();  // already complete
  explicit Pending(std::shared_ptr<State> state);
  // As `first`, but its wait() also runs `finish`, once, when `first` has
  // succeeded, on the thread of the caller.
  Pending(Pending first, std::function<void()> finish);
  Pending(Pending&&) noexcept;
  Pending& operator=(Pending&&) noexcept;
  ~Pending();

  bool is_done() const;
  // Blocks until the collective has finished. Idempotent. Raises
  // c10::DistBackendError with the group, the collective and the rank when it
  // failed or outlasted the group's time-out.
  void wait();

 private:
  std::shared_ptr<State> state_;
  std::function<void()> finish_;  // empty: nothing, or it has run
};

// The maximum of elements of which one is NaN is NaN. Reductions take float32,
// float64, float16, bfloat16, int8, uint8, int32 and int64, and raise
// c10::NotImplementedError for other dtypes.
enum class ReduceOp : std::uint8_t { kSum, kMax };

// output [N * S] <- shard [S] of every rank, in rank order. `shard` may be
// output[rank*S .. (rank+1)*S): then nothing is copied.
Pending all_gather(Group& group, at::Tensor output, at::Tensor shard);

// One collective for several flat tensors: outputs[i] is [N * S_i] and holds
// this rank's shard at [rank*S_i, (rank+1)*S_i) on entry.
Pending all_gather_coalesced(Group& group, std::vector<at::Tensor> outputs);

// output [S] <- sum over ranks of input[rank*S .. (rank+1)*S); input is
// [N * S] and keeps its values. `output` may be that part of `input`.
Pending reduce_scatter(Group& group, at::Tensor output, at::Tensor input,
                       ReduceOp op = ReduceOp::kSum);

// One collective for several flat tensors, reduced in place: of inputs[i],
// [N * S_i], the part [rank*S_i, (rank+1)*S_i) holds the sum afterwards; the
// rest is as before. `is_empty` tells the peers that every element here is
// zero; then nothing is sent, and the result is as if zeros had been. Sums go
// to outputs[i], [S_i], instead where that is defined; it must not overlap the
// inputs.
Pending reduce_scatter_coalesced(Group& group, std::vector<at::Tensor> inputs,
                                 bool is_empty = false,
                                 std::vector<at::Tensor> outputs = {},
                                 ReduceOp op = ReduceOp::kSum);

// In place, on every rank. Any contiguous tensor, any element count.
Pending all_reduce(Group& group, at::Tensor tensor,
                   ReduceOp op = ReduceOp::kSum);

// tensor <- the tensor of the group's rank `source`.
Pending broadcast(Group& group, at::Tensor tensor, int source);

// output[i*S .. (i+1)*S) <- input[rank*S .. (rank+1)*S) of rank i; both are
// [N * S] and must not overlap.
Pending all_to_all(Group& group, at::Tensor output, at::Tensor input);

// Completes when every rank has issued it.
Pending barrier(Group& group);

}  // namespace nfold
