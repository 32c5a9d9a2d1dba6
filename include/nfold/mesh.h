// File: nfold/mesh.h
//
// The process groups that a configuration asks for, by name, each made once.
// docs/process_groups.md draws them.
//
//   nfold::Mesh mesh(world, config);   // every rank, at the same point
//   nfold::Group& group = mesh.tensor_parallel();
//   loader.next(mesh.data_parallel_rank(), mesh.data_parallel_size());
//
// The ranks are a row-major array of data x sequence x tensor, so that the
// ranks of a tensor group are neighbours. All other groups are laid out inside
// of data x sequence, the ranks with the same part of the model: there state
// is sharded, and expert and shard groups are blocks of it.
//
//   name                  made by
//   data_parallel         always
//   sequence_parallel     sequence_parallel_size
//   sequence_data         always; data_parallel itself without the former
//   tensor_parallel       tensor_parallel_size
//   expert_<k>, expert_data_<k>
//                         expert_parallel_size, create_expert_groups(k)
//   secondary_shard       zero_optimization.zero_hpz_partition_size
//   mics_shard, mics_replica
//                         zero_optimization.mics_shard_size
//   mics_intra_node, mics_inter_node
//                         zero_optimization.mics_hierarchical_params_gather
//   all_to_all_local, all_to_all_global
//                         zero_optimization.zero_quantized_gradients,
//                         create_all_to_all_groups()
//   pipeline_parallel     a group provider
//
// Groups that follow the machines take rank r to be on machine r / size, where
// the size is NDEV_PER_NODE of the environment or else the ranks on this host.
//
// Making groups is collective over the world: every rank must construct the
// mesh, and call the functions that begin with create_, at the same points.
// The mesh's own groups end with it; another one may be made afterwards, or at
// the same time, with another configuration. The world must outlive the mesh
// and stay where it is. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "nfold/config.h"
#include "nfold/group.h"
#include "nfold/group_provider.h"
#include "nfold/world.h"

namespace nfold {

// The ranks of every group of one name; a rank is in at most one.
struct GroupPlan {
  std::string name;
  std::vector<std::vector<int>> lists;
};

// The groups of a Mesh with this configuration, in the order in which it makes
// them, without any being made. sequence_data is left out where it is
// data_parallel. Raises c10::ValueError as the mesh does. Pure.
std::vector<GroupPlan> plan_mesh(const Config& config, int world_size,
                                 int devices_per_node);

class Mesh {
 public:
  // Raises c10::ValueError, with the numbers, for sizes that do not divide and
  // for machines with different numbers of ranks where a group follows them;
  // then no group was made on any rank.
  Mesh(const World& world, const Config& config);
  // With the provider's groups in place of those of data_parallel_size,
  // sequence_parallel_size and tensor_parallel_size: what the provider says
  // counts, with a warning where a size says otherwise. A size above 1 of
  // which it has no group is a c10::ValueError, and so are groups that
  // contradict each other.
  Mesh(const World& world, const Config& config, GroupProvider& provider);
  Mesh(Mesh&&) noexcept = default;
  Mesh& operator=(Mesh&&) noexcept = default;
  ~Mesh() = default;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // Of the world, on the host of this rank.
  int ranks_on_host() const { return ranks_on_host_; }

  // The ranks over which a batch is split.
  Group& data_parallel() const { return group("data_parallel"); }
  int data_parallel_size() const { return data_parallel_.size; }
  int data_parallel_rank() const { return data_parallel_.rank; }

  // Sizes and ranks are 1 and 0 where there is no such group.
  Group& sequence_parallel() const { return group("sequence_parallel"); }
  int sequence_parallel_size() const { return sequence_parallel_.size; }
  int sequence_parallel_rank() const { return sequence_parallel_.rank; }

  // The ranks that share out layers of the model.
  Group& tensor_parallel() const { return group("tensor_parallel"); }
  int tensor_parallel_size() const { return tensor_parallel_.size; }
  int tensor_parallel_rank() const { return tensor_parallel_.rank; }

  int pipeline_parallel_size() const { return pipeline_parallel_.size; }

  // Data x sequence: the ranks with the same part of the model. State is
  // sharded and gradients are reduced over these.
  Group& sequence_data() const { return group("sequence_data"); }
  Group& state_group() const { return sequence_data(); }

  // The ranks that together hold the state once. With
  // zero_optimization.mics_shard_size these are so many neighbours
  // ("mics_shard"), else all of state_group().
  Group& shard_group() const;
  // The ranks that hold the same shard ("mics_replica"); null where there is
  // only this one.
  Group* replica_group() const { return find("mics_replica"); }
  // The neighbours that hold a second copy of the parameters between them; null
  // if zero_optimization.zero_hpz_partition_size is 1.
  Group* secondary_shard() const { return find("secondary_shard"); }
  // The two hops of a gather in a shard group, null unless
  // zero_optimization.mics_hierarchical_params_gather: first among the ranks of
  // it with this rank's place on their nodes, then among those of this node.
  Group* mics_inter_node() const { return find("mics_inter_node"); }
  Group* mics_intra_node() const { return find("mics_intra_node"); }

  // The `size` ranks that share out the experts, and the ranks that hold the
  // same experts as this one. Blocks of state_group(): with
  // use_data_before_expert_parallelism the latter are neighbours, else the
  // former.
  Group& expert(int size) const;
  Group& expert_data(int size) const;
  // Makes both. Does nothing if they exist; different sizes exist side by
  // side. Raises c10::ValueError for a size that does not divide the ranks of
  // state_group() and on a mesh with MiCS. Collective.
  void create_expert_groups(int size);
  // Of the expert groups made so far: empty and "ep_size_None", or 4 and
  // "ep_size_4".
  std::optional<int> largest_expert_size() const;
  std::string largest_expert_name() const;
  // Ranks that share out each expert: the tensor size, or 1 without experts.
  int expert_tensor_parallel_size() const;

  // The two hops of a quantized reduction of gradients: the ranks of
  // state_group() on this node, and those with the same place on their nodes.
  // With one node there is no global group. Does nothing if they exist. Raises
  // c10::ValueError for nodes that are not full. Collective.
  void create_all_to_all_groups();

  // Raises c10::ValueError for a group that there is not: with what would make
  // it, and the groups that there are.
  Group& group(const std::string& name) const;
  // Null if there is none.
  Group* find(const std::string& name) const;
  // Each group that there is, once.
  std::vector<Group*> groups() const;
  // The global rank of the group's rank 0, from which broadcasts come. This
  // rank for an axis of one rank that has no group. Raises as group().
  int source_rank(const std::string& name) const;

  // Ends a group, under each name that it has; to ask for it is then an error.
  // A group of a provider is only forgotten. Raises as group(). To be called by
  // every rank of the world at the same point, when none uses the group: a
  // create_ function makes all groups of a name or none.
  void destroy(const std::string& name);

 private:
  struct Axis {
    int size = 1;
    int rank = 0;
  };

  void make(const std::vector<GroupPlan>& plan);
  void finish(const Config& config, const std::vector<GroupPlan>& plan);
  Axis axis_of(const std::string& name) const;

  const World* world_;
  int rank_;
  int world_size_;
  int ranks_on_host_;
  // The rank lists of sequence_data, of all ranks of the world.
  std::vector<std::vector<int>> state_lists_;
  bool is_data_before_expert_;
  std::map<std::string, std::shared_ptr<Group>> groups_;
  std::set<std::string> destroyed_;
  std::set<int> expert_sizes_;
  Axis data_parallel_;
  Axis sequence_parallel_;
  Axis tensor_parallel_;
  Axis pipeline_parallel_;
};

}  // namespace nfold
