// File: message_transport.h
//
// Collectives as messages between pairs of ranks, over the send and recv of a
// c10d backend.
//
//   auto transport = make_message_transport(link);    // among link.peers
#pragma once

#include <memory>

#include "comm/group_exchange.h"
#include "comm/transport.h"

namespace nfold {

// Collectives of this rank and link.peers, which are numbered as in link.names:
// the shards of other ranks neither move nor count. No peers: all other ranks.
// Several transports may share a backend if all ranks use one at a time, each
// in the same order.
std::unique_ptr<GroupTransport> make_message_transport(GroupLink link);

}  // namespace nfold
