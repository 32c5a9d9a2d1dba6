// File: collectives_bodies.h
//
// How the bytes of each collective move, over an exchange and plain memory.
// nfold/collectives.h is what callers use; this is what message_transport.h
// runs for it. Every rank sends directly to every other: one hop, no copy
// through a third rank, and with a payload that differs for each peer nothing
// is sent twice.
//
// Steps (one hop each, after the calls) and memory beyond the tensors:
//   all_gather      1 step    none: received in place
//   reduce_scatter  1 step    staging of kStagingDepth chunks for each peer
//   all_reduce      2 steps   the same; the second step starts with the first
//                             chunk that is summed
//   broadcast       1 step    none
//   all_to_all      1 step    none
//
// Sums follow a balanced binary tree over the rank (kernels/sum_tree.h) for
// each element, so chunks change nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/flat_view.h"
#include "comm/group_exchange.h"
#include "comm/scratch.h"

namespace nfold {

// The shard of this rank is there on entry; all others are received.
void run_all_gather(GroupExchange& exchange,
                    const std::vector<FlatView>& flats);

// outputs[i] <- the sum of this rank's shard of flats[i]; may be that shard.
void run_reduce_scatter(GroupExchange& exchange, Scratch& scratch,
                        const std::vector<FlatView>& flats,
                        const std::vector<std::byte*>& outputs,
                        const CollectiveCall& call);

void run_all_reduce(GroupExchange& exchange, Scratch& scratch,
                    const FlatView& flat, const CollectiveCall& call);

void run_broadcast(GroupExchange& exchange, const FlatView& flat, int source);

void run_all_to_all(GroupExchange& exchange, const FlatView& output,
                    const FlatView& input);

}  // namespace nfold
