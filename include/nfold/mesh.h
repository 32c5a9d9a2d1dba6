// File: nfold/mesh.h
//
// The process groups that a configuration asks for, by name. Every rank must
// construct the mesh at the same point, since making groups is collective.
//
//   nfold::Mesh mesh(world, config);
//   nfold::Group& group = mesh.group("data_parallel");
//
// Groups that follow the machines take rank r to be on machine r / size, where
// the size is NDEV_PER_NODE of the environment or else the ranks on this host.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "nfold/config.h"
#include "nfold/group.h"
#include "nfold/world.h"

namespace nfold {

class Mesh {
 public:
  // Raises c10::ValueError, with the numbers, for sizes that do not divide and
  // for machines with different numbers of ranks where a group follows them.
  Mesh(const World& world, const Config& config);

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // The ranks over which a batch is split.
  Group& data_parallel() const { return group("data_parallel"); }
  // The ranks that together hold the state once. With
  // zero_optimization.mics_shard_size these are so many neighbours
  // ("mics_shard"), else all of data_parallel().
  Group& shard_group() const;
  // The ranks that hold the same shard ("mics_replica"); null where there is
  // only this one.
  Group* replica_group() const;
  // The neighbours that hold a second copy of the parameters between them
  // ("secondary_shard"), so many as zero_optimization.zero_hpz_partition_size
  // says; null if that is 1.
  Group* secondary_shard() const;
  // The two hops of a gather in a shard group, null unless
  // zero_optimization.mics_hierarchical_params_gather: first among the ranks of
  // it with this rank's place on their nodes ("mics_inter_node"), then among
  // those of this node ("mics_intra_node").
  Group* mics_inter_node() const;
  Group* mics_intra_node() const;
  // Raises c10::ValueError, with the names there are, for an unknown one.
  Group& group(const std::string& name) const;
  // Null if there is none.
  Group* find(const std::string& name) const;

 private:
  int rank_;
  int world_size_;
  std::map<std::string, std::unique_ptr<Group>> groups_;
};

}  // namespace nfold
