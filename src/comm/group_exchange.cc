#include "comm/group_exchange.h"

#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include <algorithm>

#include "nfold/errors.h"

namespace nfold {
namespace {

using Clock = std::chrono::steady_clock;

// Tags of the calls themselves and of probes; those of payloads are larger.
constexpr int kCallTag = 1;
constexpr int kProbeTag = 0;
// How long to go on after a divergence was found, so that the peers get our
// call too and can say the same.
constexpr std::chrono::milliseconds kLinger = std::chrono::seconds(2);

std::vector<at::Tensor> as_tensors(const void* data, std::int64_t num_bytes) {
  // The backend's interface has no const; it only reads what it sends.
  return {at::from_blob(const_cast<void*>(data), {num_bytes}, at::kByte)};
}

}  // namespace

GroupExchange::GroupExchange(const GroupLink& link, const CollectiveCall& call)
    : link_(link),
      call_(call),
      deadline_(Clock::now() + link.timeout),
      peer_calls_(link.peers.size()) {
  // Receives first: a peer whose call has arrived can take ours.
  for (std::size_t i = 0; i < link_.peers.size(); ++i) {
    Message message{link_.peers[i], sizeof(CollectiveCall), nullptr};
    try {
      auto tensors = as_tensors(&peer_calls_[i], sizeof(CollectiveCall));
      message.work = link_.backend->recv(tensors, message.peer, kCallTag);
    } catch (const std::exception& error) {
      raise_lost(message.peer, message_of(error));
    }
    call_receives_.push_back(std::move(message));
  }
  for (const int peer : link_.peers) {
    Message message{peer, sizeof(CollectiveCall), nullptr};
    try {
      auto tensors = as_tensors(&call_, sizeof(CollectiveCall));
      message.work = link_.backend->send(tensors, peer, kCallTag);
    } catch (const std::exception& error) {
      raise_lost(peer, message_of(error));
    }
    call_sends_.push_back(std::move(message));
  }
}

// The backend's buffers go before the memory that they point to.
GroupExchange::~GroupExchange() {
  sends_.clear();
  call_sends_.clear();
  call_receives_.clear();
}

int GroupExchange::tag_of(Phase phase) const {
  return message_tag_of(call_) + static_cast<int>(phase);
}

std::vector<int> GroupExchange::ranks() const {
  std::vector<int> ranks = link_.peers;
  ranks.push_back(link_.names.rank);
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

std::chrono::milliseconds GroupExchange::time_left() const {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
  // Zero would mean the backend's own time-out.
  return std::max(left, std::chrono::milliseconds(1));
}

void GroupExchange::send(int peer, const void* data, std::int64_t num_bytes,
                         Phase phase) {
  if (num_bytes == 0) return;
  Message message{peer, num_bytes, nullptr};
  try {
    auto tensors = as_tensors(data, num_bytes);
    message.work = link_.backend->send(tensors, peer, tag_of(phase));
  } catch (const std::exception& error) {
    raise_lost(peer, message_of(error));
  }
  sends_.push_back(std::move(message));
  sent_bytes_ += num_bytes;
}

GroupExchange::Message GroupExchange::receive(int peer, void* data,
                                              std::int64_t num_bytes,
                                              Phase phase) {
  Message message{peer, num_bytes, nullptr};
  if (num_bytes == 0) return message;
  try {
    auto tensors = as_tensors(data, num_bytes);
    message.work = link_.backend->recv(tensors, peer, tag_of(phase));
  } catch (const std::exception& error) {
    raise_lost(peer, message_of(error));
  }
  return message;
}

void GroupExchange::wait(Message& message) {
  if (!message.work) return;
  try {
    link_.waits->wait(message.work, time_left());
  } catch (const PeerError&) {
    throw;
  } catch (const std::exception& error) {
    raise_lost(message.peer, message_of(error));
  }
  message.work.reset();
}

void GroupExchange::begin() {
  for (std::size_t i = 0; i < call_receives_.size(); ++i) {
    try {
      link_.waits->wait(call_receives_[i].work, time_left());
    } catch (const PeerError&) {
      throw;
    } catch (const std::exception& error) {
      if (Clock::now() >= deadline_) raise_missing(i);
      raise_lost(call_receives_[i].peer, message_of(error));
    }
    call_receives_[i].work.reset();
    if (differs(call_, peer_calls_[i])) raise_diverged(i);
  }
}

bool GroupExchange::is_empty(int peer) const {
  const auto at = std::find(link_.peers.begin(), link_.peers.end(), peer);
  TORCH_INTERNAL_ASSERT(at != link_.peers.end());
  return peer_calls_[static_cast<std::size_t>(at - link_.peers.begin())]
      .is_empty;
}

void GroupExchange::finish() {
  for (Message& message : call_sends_) wait(message);
  for (Message& message : sends_) wait(message);
}

void GroupExchange::raise_lost(int peer, const std::string& transport_text) {
  if (Clock::now() >= deadline_) throw_stuck(link_.names, peer, link_.timeout);
  // The peer may only have followed one that died before it, to which the
  // connection is gone too: name them all.
  std::vector<int> lost{peer};
  for (const int other : link_.peers) {
    if (other != peer && is_closed(other)) lost.push_back(other);
  }
  // A host that vanished closes nothing: the first rank to run out of
  // patience does.
  std::string more;
  if (!link_.names.host_names.empty()) {
    std::vector<int> silent = absent_peers(0);
    std::erase_if(silent, [&](int other) {
      return std::find(lost.begin(), lost.end(), other) != lost.end();
    });
    if (!silent.empty()) {
      more = fmt::format(". Not heard from by then: {}",
                         link_.names.describe(silent));
    }
  }
  throw_lost(link_.names, lost, "transport: " + transport_text, more);
}

bool GroupExchange::is_closed(int peer) const {
  // Posting to a closed connection fails at once. Nothing is ever sent with
  // this tag, so the message is dropped here without having been matched.
  std::byte unused{};
  try {
    auto tensors = as_tensors(&unused, 1);
    link_.backend->recv(tensors, peer, kProbeTag);
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

std::vector<int> GroupExchange::absent_peers(std::size_t first) {
  std::vector<int> absent;
  for (std::size_t i = first; i < call_receives_.size(); ++i) {
    Message& message = call_receives_[i];
    if (!message.work) continue;
    try {
      message.work->wait(std::chrono::milliseconds(1));
    } catch (const std::exception&) {
      absent.push_back(message.peer);
    }
  }
  return absent;
}

void GroupExchange::raise_missing(std::size_t first_missing) {
  // After a time-out the backend closes all connections; calls that had
  // arrived before can still be taken.
  std::vector<int> missing = absent_peers(first_missing + 1);
  missing.push_back(call_receives_[first_missing].peer);
  throw_missing(link_.names, missing, link_.timeout);
}

void GroupExchange::raise_diverged(std::size_t peer_index) {
  // The group closes its connections now. The peers must get this rank's call
  // first, so that they can say what went wrong as well.
  const auto limit = std::min(deadline_, Clock::now() + kLinger);
  for (Message& message : call_sends_) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(limit - Clock::now());
    try {
      message.work->wait(std::max(left, std::chrono::milliseconds(1)));
    } catch (const std::exception&) {
      break;
    }
  }
  throw_diverged(link_.names, call_receives_[peer_index].peer,
                 peer_calls_[peer_index], call_);
}

}  // namespace nfold
