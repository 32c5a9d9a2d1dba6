// File: group_exchange.h
//
// One collective under way: messages to and from the peers, with one deadline,
// and errors that name the peer. Lives on the group's thread, for one job.
//
//   GroupExchange exchange(link, call);
//   exchange.send(peer, bytes);         // posted, goes when the peer is ready
//   exchange.begin();                   // all ranks are in the same collective
//   auto message = exchange.receive(peer, buffer);
//   exchange.wait(message);
//   exchange.finish();                  // everything sent is out of our hands
//
// Messages between two ranks arrive in the order in which they were posted,
// separately for each phase. Every member function but is_empty() may raise
// PeerError. Memory that was posted must stay as it is until the exchange is
// destroyed or the message was waited for.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "comm/abortable_wait.h"
#include "comm/collectives_call.h"
#include "comm/peer_errors.h"

namespace nfold {

// What an exchange needs of its group. `peers` are the group ranks that it is
// with, in the order in which this rank turns to them: from rank + 1, wrapping
// round, so that no rank is addressed by all others at once.
struct GroupLink {
  c10::intrusive_ptr<c10d::Backend> backend;
  PeerNames names;
  std::vector<int> peers;
  std::chrono::milliseconds timeout{0};
  std::shared_ptr<AbortableWait> waits = std::make_shared<AbortableWait>();
};

class GroupExchange {
 public:
  struct Message {
    int peer = 0;
    std::int64_t num_bytes = 0;
    c10::intrusive_ptr<c10d::Work> work;  // null: nothing to wait for
  };

  // Phases keep apart messages whose receives are not posted in the order of
  // their sends.
  enum class Phase : std::uint8_t { kFirst, kSecond };

  // Posts the exchange of the call itself.
  GroupExchange(const GroupLink& link, const CollectiveCall& call);
  ~GroupExchange();
  GroupExchange(const GroupExchange&) = delete;
  GroupExchange& operator=(const GroupExchange&) = delete;

  const std::vector<int>& peers() const { return link_.peers; }
  int rank() const { return link_.names.rank; }
  // The peers and this rank, ascending: the order of sums.
  std::vector<int> ranks() const;

  // An empty message is not sent at all, nor received.
  void send(int peer, const void* data, std::int64_t num_bytes,
            Phase phase = Phase::kFirst);
  Message receive(int peer, void* data, std::int64_t num_bytes,
                  Phase phase = Phase::kFirst);
  void wait(Message& message);

  // Waits until every peer has entered the collective and raises PeerError
  // when one entered another.
  void begin();
  // After begin(): the peer contributes zeros and sends no payload.
  bool is_empty(int peer) const;
  // Waits until what was sent has left this rank's memory.
  void finish();

  std::int64_t sent_bytes() const { return sent_bytes_; }

 private:
  std::chrono::milliseconds time_left() const;
  int tag_of(Phase phase) const;
  // Turns an error of the transport into one that names the peer.
  [[noreturn]] void raise_lost(int peer, const std::string& transport_text);
  [[noreturn]] void raise_missing(std::size_t first_missing);
  [[noreturn]] void raise_diverged(std::size_t peer_index);
  bool is_closed(int peer) const;
  // Of the peers from that index on, those whose call has not arrived. After
  // it the connections may be closed.
  std::vector<int> absent_peers(std::size_t first);

  const GroupLink& link_;
  const CollectiveCall call_;
  const std::chrono::steady_clock::time_point deadline_;
  // In the order of peers().
  std::vector<CollectiveCall> peer_calls_;
  std::vector<Message> call_receives_;
  std::vector<Message> call_sends_;
  // Of payload, in the order of posting.
  std::vector<Message> sends_;
  std::int64_t sent_bytes_ = 0;
};

}  // namespace nfold
