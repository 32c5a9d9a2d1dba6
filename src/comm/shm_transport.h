// File: shm_transport.h
//
// Collectives among ranks of one host, through memory that they share: a rank
// copies what it gives into its slot, the others read it there. No message, no
// copy through the kernel, and sums read every contribution where it lies.
//
//   auto transport = make_shm_transport(
//       make_shm_channel(store, names, timeout, worker));
//
// Steps of one phase each, with half-slots of K bytes and N ranks (see
// shm_channel.h):
//   all_gather      K bytes of every shard
//   reduce_scatter  K / (N-1) bytes of every shard
//   all_reduce      the same, then the sums; up to K bytes in one phase, in
//                   which every rank sums all
//   broadcast       K bytes
//   all_to_all      K / (N-1) bytes for every peer
//   barrier         nothing
//
// Sums follow a balanced binary tree over the rank (kernels/sum_tree.h), so
// they are the same bits as over any other transport.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "comm/group_worker.h"
#include "comm/peer_errors.h"
#include "comm/shm_channel.h"
#include "comm/transport.h"

namespace nfold {

// Collective over the group, whose ranks must be on one host; `store` is a
// name space of its own. The worker's thread, which runs the collectives later,
// stands for this rank: peers notice when it ends. Raises c10::Error on every
// rank when one of them could not take part, with that rank's reason.
std::shared_ptr<ShmChannel> make_shm_channel(c10d::Store& store,
                                             const PeerNames& names,
                                             std::chrono::milliseconds timeout,
                                             GroupWorker& worker);

std::unique_ptr<GroupTransport> make_shm_transport(
    std::shared_ptr<ShmChannel> channel);

}  // namespace nfold
