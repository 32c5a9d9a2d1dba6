// File: nfold/c10d_backend.h
//
// A group as a c10d::Backend, so that whatever takes one of torch's process
// groups communicates through nfold: DDP's reducer, torch's collectives, code
// of your own. Ranks of one host then share memory instead of sending messages.
//
//   auto world = nfold::World::from_environment();
//   auto backend = nfold::make_c10d_backend(world.new_group("ddp", all_ranks));
//   auto torch_group = c10::make_intrusive<c10d::ProcessGroup>(
//       store, world.rank(), world.size());   // any store: it is not used
//   torch_group->setBackend(at::kCPU, c10d::ProcessGroup::CUSTOM, backend);
//   torch_group->setDefaultBackend(c10d::ProcessGroup::CUSTOM);
//   std::vector<at::Tensor> tensors = {gradient};
//   torch_group->allreduce(tensors)->wait();
//
// For dense CPU tensors. All ranks of the group must call each function, in
// one order, as nfold/collectives.h says; ranks that do not get its errors.
// What a call may take:
//
//   allreduce, reduce          one tensor
//   allreduce_coalesced        tensors of one dtype
//   broadcast                  one tensor
//   allgather, gather          one tensor, and a list of one for each rank of
//                              as many elements
//   reduce_scatter, scatter    the same the other way round
//   _allgather_base            N * S elements from S, in any shapes
//   _reduce_scatter_base       S elements from N * S, in any shapes
//   allgather_into_tensor_coalesced, reduce_scatter_tensor_coalesced
//                              the same for several tensors; those that are
//                              reduced have one dtype
//   alltoall_base              both lists of split sizes empty, on every rank:
//                              equal parts. Else any sizes
//   alltoall                   tensors of any sizes, one dtype
//   barrier
//
// Tensors need not be contiguous; those that are not, and lists, go through a
// contiguous copy. Parts of different sizes are padded to the longest that any
// rank sends, on every rank, and cost an exchange of the sizes. gather and
// reduce move as many bytes as allgather and allreduce, scatter as many as a
// broadcast of all its parts.
//
// Reductions: SUM, MAX, MIN, and AVG of floating-point numbers, a sum in the
// order of nfold/collectives.h, rounded, then divided. bool takes SUM and MAX,
// which are "or", and MIN, which is "and". Inputs of a reduce_scatter keep
// their values; reduce changes the tensor of the root only.
//
// Every function raises, on this rank and before anything is sent,
// c10::ValueError for tensors that do not fit, c10::NotImplementedError for
// other reductions and for send, recv and recvAnysource, which nfold's
// transports do not have (use alltoall_base with split sizes, or add a Gloo
// backend for them), and c10::DistBackendError if the group has failed. What
// fails later is a c10::DistBackendError that names the ranks, raised by the
// work's wait() and its future. Other functions of c10d::Backend raise torch's
// own c10::Error.
//
// A call returns before its work is done. Tensors must stay as they are until
// then; the work keeps them alive, and may be dropped. A time-out given to
// wait() ends that wait, not the work; time-outs in the options of a call are
// not used, since the group has one. What is chained to a work's future runs on
// the group's thread, before wait() returns: it may issue collectives, but must
// neither wait for one of this backend nor be the last to hold the backend.
//
// Callable from any thread, as long as all ranks issue in one order. Not part
// of nfold/nfold.h, because it includes much of torch.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "nfold/group.h"
#include "nfold/world.h"

namespace nfold {

// Of a group that already is: not collective. The backend keeps the group, and
// destroying it runs what was issued to its end. While others use the group
// too, all ranks must issue in one order whichever way. A std::unique_ptr, as
// World::new_group returns it, may be moved in. Raises c10::ValueError for
// null.
c10::intrusive_ptr<c10d::Backend> make_c10d_backend(
    std::shared_ptr<Group> group);

// Of all `size` ranks that meet in the store, for programs that have no World:
// as World::from_store, whose errors it raises, and collective like it.
// `options` chooses the transport and the time-outs. The store must be a name
// space of its own, such as a c10d::PrefixStore, for each backend; the group is
// named "world" in errors.
c10::intrusive_ptr<c10d::Backend> make_c10d_backend(
    c10::intrusive_ptr<c10d::Store> store, int rank, int size,
    const WorldOptions& options = {});

}  // namespace nfold
