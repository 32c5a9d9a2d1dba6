// File: message_transport.h
//
// Collectives as messages between pairs of ranks, over the send and recv of a
// c10d backend.
//
//   auto transport = make_message_transport(link);
#pragma once

#include <memory>

#include "comm/group_exchange.h"
#include "comm/transport.h"

namespace nfold {

// link.peers is filled in.
std::unique_ptr<GroupTransport> make_message_transport(GroupLink link);

}  // namespace nfold
