// File: host_blocks.h
//
// The ranks of a group as so many hosts with equally many ranks each: the
// shape that a hierarchical transport works on. Pure.
//
//   host_blocks({"a", "a", "b", "b"})    // 2 hosts of 2 ranks
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "nfold/collectives.h"

namespace nfold {

// Rank r of the group is rank r % ranks_per_host of host r / ranks_per_host.
struct HostBlocks {
  int num_hosts = 1;
  int ranks_per_host = 1;

  bool operator==(const HostBlocks&) const = default;
};

// `hosts`: of each rank of the group. Nothing unless there are several hosts,
// the ranks of each are next to each other, and there are equally many, at
// least two, on each.
std::optional<HostBlocks> host_blocks(const std::vector<std::string>& hosts);

// Whether combining inside the hosts first and the results across hosts
// afterwards gives the bits that combining all ranks at once does. Sums of
// floating-point numbers: if the hosts are branches of the tree that sums
// follow (kernels/sum_tree.h), and nothing is rounded in between.
bool combines_by_host(const HostBlocks& blocks, ReduceOp op,
                      c10::ScalarType dtype);

}  // namespace nfold
