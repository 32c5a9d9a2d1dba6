// File: transport.h
//
// How the bytes of one group travel. Two ways exist: messages between pairs of
// ranks over a c10d backend (message_transport.h), across hosts; and memory
// that the ranks of one host share (shm_transport.h). Both take the same calls,
// sum in the same order and find out in the same words that ranks diverged.
//
//   transport->all_reduce(call, flat);   // on every rank of the group
//
// Each function runs one collective to its end on the calling thread and
// returns the payload bytes that this rank gave to others, or raises PeerError.
// After an error the transport is only good for close(). For one thread, but
// for abort().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/collectives_call.h"
#include "comm/flat_view.h"

namespace nfold {

class ShmChannel;

class GroupTransport {
 public:
  GroupTransport() = default;
  virtual ~GroupTransport() = default;
  GroupTransport(const GroupTransport&) = delete;
  GroupTransport& operator=(const GroupTransport&) = delete;

  // "gloo", "shm": for reports.
  virtual const char* name() const = 0;

  // What the ranks share memory through; null where they do not.
  virtual std::shared_ptr<ShmChannel> shm_channel() const { return nullptr; }

  // The shard of this rank is there on entry; all others arrive.
  virtual std::int64_t all_gather(const CollectiveCall& call,
                                  const std::vector<FlatView>& flats) = 0;
  // outputs[i] <- this rank's shard of flats[i], combined over ranks; may be
  // that shard.
  virtual std::int64_t reduce_scatter(
      const CollectiveCall& call, const std::vector<FlatView>& flats,
      const std::vector<std::byte*>& outputs) = 0;
  virtual std::int64_t all_reduce(const CollectiveCall& call,
                                  const FlatView& flat) = 0;
  // From call.source.
  virtual std::int64_t broadcast(const CollectiveCall& call,
                                 const FlatView& flat) = 0;
  virtual std::int64_t all_to_all(const CollectiveCall& call,
                                  const FlatView& output,
                                  const FlatView& input) = 0;
  virtual std::int64_t barrier(const CollectiveCall& call) = 0;

  // From any thread, until the transport is destroyed: a collective that waits
  // for a peer raises PeerError, kDiverged, with this text, and so does each
  // that would wait later.
  virtual void abort(const std::string& text) noexcept = 0;

  // Last, or after an error: peers that wait for this rank find out that it
  // will not come. Idempotent.
  virtual void close() noexcept = 0;
};

}  // namespace nfold
