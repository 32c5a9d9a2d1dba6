// File: mesh_table.h
//
// The process groups of a configuration as a table, for `nfold mesh`. Nothing
// is started and no group is made.
//
//   fmt::print("{}", format_mesh(config, {.num_ranks = 8}));
//
//   8 ranks: 4 data x 1 sequence x 2 tensor
//
//   group            groups of  ranks
//   data_parallel            4  [0 2 4 6] [1 3 5 7]
//   tensor_parallel          2  [0 1] [2 3] [4 5] [6 7]
//
// Pure.
#pragma once

#include <cstddef>
#include <string>

#include "nfold/config.h"

namespace nfold::train {

struct MeshTableOptions {
  int num_ranks = 1;
  // For groups that follow the machines; 0: all ranks are on one.
  int ranks_per_node = 0;
  // Longer lists, and more of them, are cut short with their number.
  std::size_t num_shown = 8;
};

// Raises c10::ValueError as a Mesh with this configuration does.
std::string format_mesh(const Config& config, const MeshTableOptions& options);

}  // namespace nfold::train
