// File: nfold/mesh.h
//
// The process groups that a configuration asks for, by name. Every rank must
// construct the mesh at the same point, since making groups is collective.
//
//   nfold::Mesh mesh(world, config);
//   nfold::Group& group = mesh.group("data_parallel");
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
  // Raises c10::ValueError, with the numbers, for sizes that do not divide.
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
  // Raises c10::ValueError, with the names there are, for an unknown one.
  Group& group(const std::string& name) const;

 private:
  int rank_;
  int world_size_;
  std::map<std::string, std::unique_ptr<Group>> groups_;
};

}  // namespace nfold
