// File: peer_errors.h
//
// What went wrong with a peer, and how peers are called in errors: the same
// words whichever way the bytes travel. GroupImpl adds who, where and when.
//
//   const PeerNames names{.rank = 1, .global_ranks = {0, 4, 5}};
//   throw_missing(names, {2}, timeout);   // "rank 5 did not enter it ..."
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/collectives_call.h"

namespace nfold {

class PeerError : public std::runtime_error {
 public:
  enum class Kind : std::uint8_t { kTimeout, kClosed, kDiverged };
  PeerError(Kind kind, const std::string& text)
      : std::runtime_error(text), kind(kind) {}
  const Kind kind;
};

struct PeerNames {
  int rank = 0;  // this one's, in the group
  std::vector<int> global_ranks;
  // Of each group rank, or empty if all are on one host.
  std::vector<std::string> host_names{};

  int global_rank(int peer) const {
    return global_ranks[static_cast<std::size_t>(peer)];
  }
  // "rank 3", or "ranks 2, 3 (host beta)" where there are several hosts.
  std::string describe(std::vector<int> peers) const;
};

// "2.5 s"
std::string seconds_text(std::chrono::milliseconds duration);

// kTimeout: these peers have not come.
[[noreturn]] void throw_missing(const PeerNames& names,
                                const std::vector<int>& peers,
                                std::chrono::milliseconds timeout);
// kTimeout: the peer came, but its part did not.
[[noreturn]] void throw_stuck(const PeerNames& names, int peer,
                              std::chrono::milliseconds timeout);
// kDiverged: the peer entered another collective.
[[noreturn]] void throw_diverged(const PeerNames& names, int peer,
                                 const CollectiveCall& of_peer,
                                 const CollectiveCall& own);
// kClosed: these peers are gone. `why`: what the transport knows.
[[noreturn]] void throw_lost(const PeerNames& names,
                             const std::vector<int>& peers,
                             const std::string& why,
                             const std::string& more = "");

}  // namespace nfold
