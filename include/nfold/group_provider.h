// File: nfold/group_provider.h
//
// For programs that have process groups already, such as those of a
// tensor-parallel or pipeline library: tells a Mesh which they are. The mesh
// uses them as they are, and lays out what the configuration asks for (shard
// groups, experts) inside of them.
//
//   class Groups : public nfold::GroupProvider {
//    public:
//     nfold::Group* data_parallel_group() const override { return &data_; }
//     nfold::Group* model_parallel_group() const override { return &model_; }
//     ...
//   };
//   Groups groups(world);
//   nfold::Mesh mesh(world, config, groups);
//
// The methods are those of Megatron's parallel state, `mpu` for short. Where a
// Python mpu has several names for one thing (model, tensor and slice
// parallel; pipe and pipeline) there is one here, and ranks and sizes follow
// from the groups.
//
// All ranks must give the same kinds of groups. The groups belong to the
// provider and must outlive the mesh.
#pragma once

#include "nfold/group.h"

namespace nfold {

class GroupProvider {
 public:
  virtual ~GroupProvider() = default;

  // The ranks that hold the same part of the model. Null where the provider
  // knows of sequence parallelism only.
  virtual Group* data_parallel_group() const = 0;
  // The ranks that share out the model's layers, which is tensor parallelism.
  // Null if each has them whole.
  virtual Group* model_parallel_group() const = 0;
  // One rank of each stage.
  virtual Group* pipeline_parallel_group() const { return nullptr; }
  // The ranks that share a sequence.
  virtual Group* sequence_parallel_group() const { return nullptr; }
  // The ranks over which state is sharded and gradients are reduced: data x
  // sequence. Null: data_parallel_group(), or all ranks where that is null.
  virtual Group* sequence_data_parallel_group() const { return nullptr; }

  // 0 and 1 where there is no group.
  int data_parallel_rank() const { return rank_in(data_parallel_group()); }
  int data_parallel_world_size() const {
    return size_of(data_parallel_group());
  }
  int model_parallel_rank() const { return rank_in(model_parallel_group()); }
  int model_parallel_world_size() const {
    return size_of(model_parallel_group());
  }
  int pipeline_parallel_world_size() const {
    return size_of(pipeline_parallel_group());
  }
  int sequence_parallel_rank() const {
    return rank_in(sequence_parallel_group());
  }
  int sequence_parallel_world_size() const {
    return size_of(sequence_parallel_group());
  }

 private:
  static int rank_in(const Group* group) {
    return group == nullptr ? 0 : group->rank();
  }
  static int size_of(const Group* group) {
    return group == nullptr ? 1 : group->size();
  }
};

}  // namespace nfold
