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
  Mesh(const World& world, const Config& config);

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // The ranks over which a batch is split and state is sharded.
  Group& data_parallel() const { return group("data_parallel"); }
  // Raises c10::ValueError, with the names there are, for an unknown one.
  Group& group(const std::string& name) const;

 private:
  int rank_;
  int world_size_;
  std::map<std::string, std::unique_ptr<Group>> groups_;
};

}  // namespace nfold
