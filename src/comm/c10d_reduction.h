// File: c10d_reduction.h
//
// torch's reductions by those of the group: what is done to a tensor before
// and after the collective.
//
//   const C10dReduction reduction(opts.reduceOp, tensor.scalar_type(), size);
//   const at::Tensor values = reduction.prepared(tensor);
//   all_reduce(group, values, reduction.op()).wait();
//   reduction.finish(values);
//
//   SUM, MAX   as they are
//   AVG        the sum, divided
//   MIN        the maximum of what orders the other way: -x, or ~x of integers,
//              which no number overflows
//   bool       as bytes of 0 and 1: the sum is their maximum
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "nfold/collectives.h"

namespace nfold {

class C10dReduction {
 public:
  // Raises c10::NotImplementedError, which names what there is, for other
  // operations, and for AVG of what is not floating-point.
  C10dReduction(const c10d::ReduceOp& op, c10::ScalarType dtype, int num_ranks);

  ReduceOp op() const { return op_; }
  // What takes part in the collective: over the memory of the tensor, which is
  // contiguous, or a new one if `changes_values`.
  at::Tensor prepared(const at::Tensor& tensor) const;
  bool changes_values() const { return is_minimum_; }
  // A tensor of the same dtype as the memory of the result.
  at::Tensor raw(const at::Tensor& tensor) const;
  // Makes the result of what the collective has left in such a tensor.
  void finish(const at::Tensor& result) const;

 private:
  ReduceOp op_ = ReduceOp::kSum;
  bool is_minimum_ = false;
  bool is_bool_ = false;
  std::int64_t divisor_ = 1;
};

}  // namespace nfold
