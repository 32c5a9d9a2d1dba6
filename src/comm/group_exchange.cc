#include "comm/group_exchange.h"

#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

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

std::string seconds_of(std::chrono::milliseconds duration) {
  return fmt::format("{:g} s", static_cast<double>(duration.count()) / 1000.0);
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
    message.work->wait(time_left());
  } catch (const std::exception& error) {
    raise_lost(message.peer, message_of(error));
  }
  message.work.reset();
}

void GroupExchange::begin() {
  for (std::size_t i = 0; i < call_receives_.size(); ++i) {
    try {
      call_receives_[i].work->wait(time_left());
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
  if (Clock::now() >= deadline_) {
    throw PeerError(
        PeerError::Kind::kTimeout,
        fmt::format("{} entered it but its data did not move within {}. "
                    "It may be stopped, or much slower than the others",
                    describe_ranks({peer}), seconds_of(link_.timeout)));
  }
  // The peer may only have followed one that died before it, to which the
  // connection is gone too: name them all.
  std::vector<int> lost{peer};
  for (const int other : link_.peers) {
    if (other != peer && is_closed(other)) lost.push_back(other);
  }
  std::string text = fmt::format(
      "lost the {} to {}: a process probably died or left after an "
      "error; look at its output first (transport: {})",
      lost.size() == 1 ? "connection" : "connections", describe_ranks(lost),
      transport_text);
  // A host that vanished closes nothing: the first rank to run out of
  // patience does.
  if (!link_.host_names.empty()) {
    std::vector<int> silent = absent_peers(0);
    std::erase_if(silent, [&](int other) {
      return std::find(lost.begin(), lost.end(), other) != lost.end();
    });
    if (!silent.empty()) {
      text +=
          fmt::format(". Not heard from by then: {}", describe_ranks(silent));
    }
  }
  throw PeerError(PeerError::Kind::kClosed, text);
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
  throw PeerError(
      PeerError::Kind::kTimeout,
      fmt::format("{} did not enter it within {}. It may have taken "
                  "another branch, run fewer steps, failed, or be much slower "
                  "than the others; look at its output first",
                  describe_ranks(missing), seconds_of(link_.timeout)));
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
  const CollectiveCall& other = peer_calls_[peer_index];
  std::string text =
      fmt::format("rank {} entered {} while rank {} entered {}",
                  global_rank(call_receives_[peer_index].peer), describe(other),
                  global_rank(link_.rank), describe(call_));
  if (other.layout != call_.layout) {
    text += " (the sizes of the tensors differ)";
  }
  if (other.tag != call_.tag) {
    text += fmt::format(" (from different places: tag {:#x} and tag {:#x})",
                        other.tag, call_.tag);
  }
  throw PeerError(PeerError::Kind::kDiverged,
                  text +
                      ". All ranks must issue the same collectives in the same "
                      "order; did one take another branch or skip a step?");
}

int GroupExchange::global_rank(int peer) const {
  return link_.global_ranks[static_cast<std::size_t>(peer)];
}

std::string GroupExchange::describe_ranks(std::vector<int> peers) const {
  std::sort(peers.begin(), peers.end(),
            [this](int a, int b) { return global_rank(a) < global_rank(b); });
  const auto host_of = [this](int peer) {
    return link_.host_names[static_cast<std::size_t>(peer)];
  };
  std::string text = peers.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < peers.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", global_rank(peers[i]));
    if (link_.host_names.empty()) continue;
    const bool is_last_of_host =
        i + 1 == peers.size() || host_of(peers[i]) != host_of(peers[i + 1]);
    if (is_last_of_host) text += fmt::format(" (host {})", host_of(peers[i]));
  }
  return text;
}

}  // namespace nfold
