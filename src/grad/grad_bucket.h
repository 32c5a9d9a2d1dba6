// File: grad_bucket.h
//
// A bucket collects the gradients of some units until one collective reduces
// them. Buckets are planned once, numbered, and launched in the order of
// their numbers on every rank (see grad_reducer.h).
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <vector>

#include "nfold/group.h"
#include "param/sharded_unit.h"

namespace nfold {

// What one collective has one of.
struct BucketKind {
  at::ScalarType dtype = at::kFloat;
  const Group* group = nullptr;

  bool operator==(const BucketKind&) const = default;
};

// Units of each bucket, as indices into `units`, in launch order. Units are
// taken from last to first, since backward meets the last ones first; a
// bucket is closed before it would exceed max_numel elements or mix kinds, so
// a larger unit is a bucket by itself. Pure.
std::vector<std::vector<std::size_t>> plan_buckets(
    const std::vector<std::int64_t>& unit_numels,
    const std::vector<BucketKind>& unit_kinds, std::int64_t max_numel);

// The gradient of one whole unit on its way: flat, laid out as the unit, in
// the dtype of the collective. Memory exists from the first arrival until
// take().
class UnitGradBuffer {
 public:
  // `dtype` is what the buffer holds.
  UnitGradBuffer(const ShardedUnit& unit, at::ScalarType dtype);

  // Adds the gradient of tensor `tensor` of the unit's parameter `param`,
  // times `scale`, rounded to the buffer's dtype. Takes the memory of `grad`
  // over when it can become the buffer as it is: nobody else may hold it, but
  // for `num_dying_views` tensors that nobody reads any more.
  void add(std::size_t param, std::size_t tensor, at::Tensor grad, float scale,
           std::size_t num_dying_views = 0);

  bool is_empty() const { return num_arrived_ == 0; }
  // Every tensor of every parameter has arrived.
  bool is_complete() const { return num_arrived_ == num_tensors_; }
  bool has_param(std::size_t param) const;
  std::int64_t bytes() const;

  // The flat [unit numel] gradient, zero wherever nothing arrived; the buffer
  // is empty afterwards.
  at::Tensor take();
  void clear();

 private:
  const ShardedUnit* unit_;
  at::ScalarType dtype_;
  at::Tensor flat_;
  // [param][tensor]: tied tensors of one parameter arrive one by one.
  std::vector<std::vector<bool>> arrived_;
  std::size_t num_arrived_ = 0;
  std::size_t num_tensors_ = 0;
};

}  // namespace nfold
