#include "comm/wait_graph.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

namespace nfold {
namespace {

// In an error; a job may have thousands of ranks.
constexpr std::size_t kMaxLines = 16;
constexpr std::size_t kMaxNamed = 8;

// What opens when the last of some ranks has come. Many wait at the same one,
// so that looking at each once keeps the work linear.
struct Gate {
  std::vector<std::size_t> missing;  // indices of statuses
  std::vector<std::size_t> waiting;
  std::size_t num_stuck = 0;  // of those that are missing
};

// Of a collective: its group and number. Else -1 and the peer.
using GateKey = std::pair<int, std::uint64_t>;

GateKey key_of(const RankWait& wait) {
  if (wait.peer >= 0) return {-1, static_cast<std::uint64_t>(wait.peer)};
  return {wait.group, wait.sequence};
}

class WaitGraph {
 public:
  explicit WaitGraph(const std::vector<RankStatus>& statuses)
      : statuses_(statuses), is_stuck_(statuses.size(), true) {
    for (std::size_t i = 0; i < statuses.size(); ++i) {
      index_.emplace(statuses[i].rank, i);
      for (const auto& [group, count] : statuses[i].num_entered) {
        entered_[group].emplace_back(i, count);
      }
    }
    for (std::size_t i = 0; i < statuses.size(); ++i) {
      for (const RankWait& wait : statuses[i].waits) {
        gate_of(wait).waiting.push_back(i);
      }
    }
  }

  // Takes away who may go on, then who waited only for those.
  void reduce() {
    for (std::size_t i = 0; i < statuses_.size(); ++i) {
      if (statuses_[i].waits.empty()) release(i);
    }
    for (auto& [key, gate] : gates_) {
      if (gate.missing.empty()) open(gate);
    }
    while (!released_.empty()) {
      const std::size_t index = released_.back();
      released_.pop_back();
      for (Gate* gate : gates_missing_[index]) {
        if (--gate->num_stuck == 0) open(*gate);
      }
    }
  }

  std::vector<StuckRank> result() {
    std::vector<StuckRank> stuck;
    for (const auto& [rank, index] : index_) {
      if (!is_stuck_[index]) continue;
      StuckRank found{.rank = rank, .waits = {}};
      for (const RankWait& wait : statuses_[index].waits) {
        found.waits.push_back({wait, stuck_ranks(gate_of(wait))});
      }
      stuck.push_back(std::move(found));
    }
    return stuck;
  }

 private:
  Gate& gate_of(const RankWait& wait) {
    const auto [place, is_new] = gates_.try_emplace(key_of(wait));
    Gate& gate = place->second;
    if (!is_new) return gate;
    if (wait.peer >= 0) {
      const auto peer = index_.find(wait.peer);
      if (peer != index_.end()) gate.missing.push_back(peer->second);
    } else {
      for (const auto& [index, count] : entered_[wait.group]) {
        if (count <= wait.sequence) gate.missing.push_back(index);
      }
    }
    gate.num_stuck = gate.missing.size();
    // Elements of a map stay where they are.
    for (const std::size_t index : gate.missing) {
      gates_missing_[index].push_back(&gate);
    }
    return gate;
  }

  void open(const Gate& gate) {
    for (const std::size_t index : gate.waiting) release(index);
  }

  void release(std::size_t index) {
    if (!is_stuck_[index]) return;
    is_stuck_[index] = false;
    released_.push_back(index);
  }

  std::vector<int> stuck_ranks(const Gate& gate) const {
    std::vector<int> ranks;
    for (const std::size_t index : gate.missing) {
      if (is_stuck_[index]) ranks.push_back(statuses_[index].rank);
    }
    std::sort(ranks.begin(), ranks.end());
    return ranks;
  }

  const std::vector<RankStatus>& statuses_;
  std::vector<bool> is_stuck_;
  std::vector<std::size_t> released_;  // not yet taken from the gates
  std::map<int, std::size_t> index_;   // rank -> index
  // Group -> its ranks, as indices, and how many collectives they entered.
  std::map<int, std::vector<std::pair<std::size_t, std::uint64_t>>> entered_;
  std::map<GateKey, Gate> gates_;
  std::map<std::size_t, std::vector<Gate*>> gates_missing_;  // by index
};

std::string names_of(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i == kMaxNamed) {
      return text + fmt::format(" and {} more", ranks.size() - i);
    }
    text += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  }
  return text;
}

std::string line_of(int rank, const StuckWait& stuck) {
  const RankWait& wait = stuck.wait;
  const std::string where = wait.label.empty() ? "" : " (" + wait.label + ")";
  const std::string who = fmt::format(
      "\n  rank {} has waited {:.1f} s in group '{}'", rank,
      static_cast<double>(wait.duration.count()) / 1000.0, wait.group_name);
  if (wait.peer >= 0) {
    return fmt::format("{}{}: rank {} {}", who, where, wait.peer, wait.what);
  }
  return fmt::format("{}, {}{}, which {} {} not entered", who, wait.what, where,
                     names_of(stuck.waits_for),
                     stuck.waits_for.size() == 1 ? "has" : "have");
}

// The stuck ranks, those of one cycle first: what is to be understood.
std::vector<const StuckRank*> from_a_cycle(
    const std::vector<StuckRank>& stuck) {
  std::map<int, const StuckRank*> left;
  for (const StuckRank& each : stuck) left.emplace(each.rank, &each);
  const auto after = [&](const StuckRank* at) {
    return left.at(at->waits.front().waits_for.front());
  };
  // After so many steps it has been through what leads to the cycle.
  const StuckRank* at = &stuck.front();
  for (std::size_t i = 0; i < stuck.size(); ++i) at = after(at);
  std::vector<const StuckRank*> cycle;
  for (const StuckRank* start = at; cycle.empty() || at != start;
       at = after(at)) {
    cycle.push_back(at);
  }
  const auto first = std::min_element(
      cycle.begin(), cycle.end(),
      [](const auto* a, const auto* b) { return a->rank < b->rank; });
  std::rotate(cycle.begin(), first, cycle.end());
  for (const StuckRank* each : cycle) left.erase(each->rank);
  for (const auto& [rank, each] : left) cycle.push_back(each);
  return cycle;
}

}  // namespace

std::vector<StuckRank> find_stuck(const std::vector<RankStatus>& statuses) {
  WaitGraph graph(statuses);
  graph.reduce();
  return graph.result();
}

std::string describe(const std::vector<StuckRank>& stuck) {
  TORCH_INTERNAL_ASSERT(!stuck.empty());
  std::string text = "ranks wait for each other, so that none can go on:";
  std::size_t num_lines = 0;
  for (const StuckRank* each : from_a_cycle(stuck)) {
    for (const StuckWait& wait : each->waits) {
      if (num_lines < kMaxLines) text += line_of(each->rank, wait);
      ++num_lines;
    }
  }
  if (num_lines > kMaxLines) {
    text += fmt::format("\n  and {} more", num_lines - kMaxLines);
  }
  return text +
         "\nAll ranks must issue the same collectives in the same order; did "
         "one take another branch or skip a step?";
}

}  // namespace nfold
