// File: group_transport.h
//
// Which transport a group gets: shared memory where all its ranks are on one
// host, both kinds where several hosts have several ranks each, messages else.
//
//   auto transport = make_group_transport(store, request, worker);
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "comm/group_worker.h"
#include "comm/peer_errors.h"
#include "comm/transport.h"
#include "nfold/world.h"

namespace nfold {

struct TransportRequest {
  std::string group_name;
  PeerNames names;
  // The identity of the host of each rank of the group.
  std::vector<std::string> hosts;
  Transport transport = Transport::kAuto;
  std::chrono::milliseconds timeout{0};
  // As for make_gloo_backend.
  std::string interface_hint;
};

// Collective over the group, of several ranks; `store` is a name space of its
// own, and the worker's thread runs the collectives later. Where kAuto finds no
// room for shared memory the group goes over gloo, on every rank, with a
// warning. Raises c10::ValueError for kShm if the ranks are on several hosts,
// c10::Error if there is no room, c10::DistBackendError when they cannot
// connect.
std::unique_ptr<GroupTransport> make_group_transport(
    const c10::intrusive_ptr<c10d::Store>& store,
    const TransportRequest& request, GroupWorker& worker);

}  // namespace nfold
