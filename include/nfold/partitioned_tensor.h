// File: nfold/partitioned_tensor.h
//
// A tensor of which each rank of a group keeps one part, and what another
// process needs to know to put it together again.
//
//   nfold::PartitionedTensor parts(activation, group);
//   send(parts.to_meta());
//   send(parts.data());
//   ...                                       // where they were received
//   auto same = nfold::PartitionedTensor::from_meta(meta, part, group);
//   at::Tensor activation = same.full();
//
// The flattened tensor is split by partition_uniform (partition.h): parts
// differ by one element at most, and may be empty. Not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "nfold/group.h"

namespace nfold {

class PartitionedTensor {
 public:
  // Keeps a copy of this rank's part; the tensor is the same on every rank.
  // Not collective. The group must outlive this.
  PartitionedTensor(const at::Tensor& tensor, Group& group);

  // From what to_meta() and data() of a rank with the same position in a group
  // of the same size have given. `local` is kept, not copied. `device` is that
  // of full(); if empty, that of `local`.
  //
  // Raises c10::ValueError if meta is not a vector of int64 of that form, for
  // another group size, rank or part size.
  static PartitionedTensor from_meta(
      const at::Tensor& meta, const at::Tensor& local, Group& group,
      std::optional<c10::Device> device = std::nullopt);

  // int64 vector: number of dimensions, each of them, number of parts, this
  // rank, and where each part begins and the last one ends:
  // {2, 3, 5,  4, rank,  0, 4, 8, 12, 15} for [3, 5] on 4 ranks.
  at::Tensor to_meta() const;

  // The whole tensor, without autograd history, on the given or the original
  // device. Collective over the group: one all-gather if the parts are equal,
  // else one broadcast for each that is not empty.
  at::Tensor full(std::optional<c10::Device> device = std::nullopt) const;

  // This rank's part, 1-D.
  const at::Tensor& data() const { return local_; }
  std::vector<std::int64_t> local_size() const { return local_.sizes().vec(); }
  std::vector<std::int64_t> full_size() const { return full_size_; }
  // All parts have the same number of elements.
  bool is_even_split() const;

 private:
  PartitionedTensor(Group& group, c10::Device device)
      : group_(&group), device_(device) {}

  Group* group_;
  c10::Device device_;
  at::Tensor local_;
  std::vector<std::int64_t> full_size_;
  // Part p is [bounds_[p], bounds_[p + 1]) of the flattened tensor.
  std::vector<std::int64_t> bounds_;
};

}  // namespace nfold
