#include "comm/peer_errors.h"

#include <fmt/format.h>

#include <algorithm>

namespace nfold {

std::string PeerNames::describe(std::vector<int> peers) const {
  std::sort(peers.begin(), peers.end(),
            [this](int a, int b) { return global_rank(a) < global_rank(b); });
  const auto host_of = [this](int peer) {
    return host_names[static_cast<std::size_t>(peer)];
  };
  std::string text = peers.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < peers.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", global_rank(peers[i]));
    if (host_names.empty()) continue;
    const bool is_last_of_host =
        i + 1 == peers.size() || host_of(peers[i]) != host_of(peers[i + 1]);
    if (is_last_of_host) text += fmt::format(" (host {})", host_of(peers[i]));
  }
  return text;
}

std::string seconds_text(std::chrono::milliseconds duration) {
  return fmt::format("{:g} s", static_cast<double>(duration.count()) / 1000.0);
}

void throw_missing(const PeerNames& names, const std::vector<int>& peers,
                   std::chrono::milliseconds timeout) {
  throw PeerError(
      PeerError::Kind::kTimeout,
      fmt::format("{} did not enter it within {}. It may have taken "
                  "another branch, run fewer steps, failed, or be much slower "
                  "than the others; look at its output first",
                  names.describe(peers), seconds_text(timeout)));
}

void throw_stuck(const PeerNames& names, int peer,
                 std::chrono::milliseconds timeout) {
  throw PeerError(
      PeerError::Kind::kTimeout,
      fmt::format("{} entered it but its data did not move within {}. "
                  "It may be stopped, or much slower than the others",
                  names.describe({peer}), seconds_text(timeout)));
}

void throw_diverged(const PeerNames& names, int peer,
                    const CollectiveCall& of_peer, const CollectiveCall& own) {
  std::string text = fmt::format("rank {} entered {} while rank {} entered {}",
                                 names.global_rank(peer), describe(of_peer),
                                 names.global_rank(names.rank), describe(own));
  if (of_peer.layout != own.layout) {
    text += " (the sizes of the tensors differ)";
  }
  if (of_peer.tag != own.tag) {
    text += fmt::format(" (from different places: tag {:#x} and tag {:#x})",
                        of_peer.tag, own.tag);
  }
  throw PeerError(PeerError::Kind::kDiverged,
                  text +
                      ". All ranks must issue the same collectives in the same "
                      "order; did one take another branch or skip a step?");
}

void throw_lost(const PeerNames& names, const std::vector<int>& peers,
                const std::string& why, const std::string& more) {
  throw PeerError(
      PeerError::Kind::kClosed,
      fmt::format("lost the {} to {}: a process probably died or left after an "
                  "error; look at its output first ({}){}",
                  peers.size() == 1 ? "connection" : "connections",
                  names.describe(peers), why, more));
}

}  // namespace nfold
