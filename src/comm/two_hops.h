// File: two_hops.h
//
// All-gather for ranks on several nodes: first between the nodes, where every
// byte crosses once for each place in a node instead of once for each rank,
// then within each node.
//
//   // 2 nodes of 2 ranks; this one is rank 1 of node 0
//   output.narrow(0, 1 * shard_numel, shard_numel).copy_(shard);
//   all_gather_two_hops(mesh_column, mesh_row, {output}).wait();
//
// Source: MiCS (Zhang et al., 2022), hierarchical communication.
#pragma once

#include <ATen/core/TensorBody.h>

#include <vector>

#include "nfold/collectives.h"

namespace nfold {

// outputs[i]: flat [nodes * places * S_i], one dtype, with this rank's shard at
// position inter_node.rank() * intra_node.size() + intra_node.rank(); holds
// those of all ranks afterwards, the same bytes as all_gather_coalesced gives.
// Collective over both groups. Returns when the first hop is done; the second
// is under way. Raises as collectives do.
Pending all_gather_two_hops(Group& inter_node, Group& intra_node,
                            std::vector<at::Tensor> outputs);

}  // namespace nfold
