// File: hierarchical_transport.h
//
// Collectives of a group that spans hosts with several ranks on each: through
// shared memory inside a host, as messages across hosts. A host sends and
// receives everything once, instead of once for each of its ranks:
//
//                  bytes into a host, of H with L ranks each, N = H * L
//                  hierarchical             as messages between all ranks
//   all_gather     (N-L) * shard            the same times L
//   reduce_scatter (H-1) * L * shard        the same times L
//   all_reduce     2 * (H-1)/H * tensor     the same times L
//   broadcast      tensor                   the same times L
//
//   auto transport = make_hierarchical_transport(
//       blocks, rank, {std::move(local), std::move(across), std::move(flat)});
//
// Ranks with the same place on their hosts form a column, which messages stay
// in. Sums are the same bits as over any other transport (host_blocks.h says
// which qualify); what does not qualify, and all_to_all, where nothing would
// be saved, goes from every rank to every other. Each collective begins inside
// the host, so that ranks which diverge find each other there or in a column.
//
// Two-level collectives on multi-level networks: MagPIe (Kielmann et al.,
// 1999); for sharded training MiCS (Zhang et al., 2022) and ZeRO++ (Wang et
// al., 2023).
#pragma once

#include <memory>

#include "comm/host_blocks.h"
#include "comm/transport.h"

namespace nfold {

struct HierarchyLevels {
  // Of this host's ranks, numbered from 0.
  std::unique_ptr<GroupTransport> local;
  // Of this rank's column and of all ranks, numbered as in the group.
  std::unique_ptr<GroupTransport> across;
  std::unique_ptr<GroupTransport> flat;
};

// `rank` is that in the group.
std::unique_ptr<GroupTransport> make_hierarchical_transport(
    const HostBlocks& blocks, int rank, HierarchyLevels levels);

}  // namespace nfold
