#include "comm/node_size.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "comm/gather_table.h"

namespace nfold {
namespace {

constexpr char kVariable[] = "NDEV_PER_NODE";

std::optional<int> size_from_environment() {
  const char* text = std::getenv(kVariable);
  if (text == nullptr) return std::nullopt;
  int size = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, size);
  TORCH_CHECK_VALUE(error == std::errc() && stop == end && size >= 1, kVariable,
                    ": expected a number of devices of at least 1 but found '",
                    text, "'; correct it or unset it");
  return size;
}

std::string text_of(const std::vector<NodeClaim>& claims, std::size_t rank) {
  const NodeClaim& claim = claims[rank];
  return fmt::format("{} on host {} (rank {}{})", claim.num_ranks, claim.host,
                     rank, claim.is_variable ? ", NDEV_PER_NODE" : "");
}

}  // namespace

int agreed_node_size(const std::vector<NodeClaim>& claims) {
  const int size = claims.front().num_ranks;
  for (std::size_t rank = 1; rank < claims.size(); ++rank) {
    TORCH_CHECK_VALUE(
        claims[rank].num_ranks == size,
        "partial nodes: expected equally many ranks on every host but found ",
        text_of(claims, 0), " and ", text_of(claims, rank),
        "; start as many on each, or set ", kVariable,
        " to the same number on all ranks");
  }
  if (claims.front().is_variable) return size;
  for (std::size_t rank = 0; rank < claims.size(); ++rank) {
    const std::size_t first = rank - rank % static_cast<std::size_t>(size);
    TORCH_CHECK_VALUE(
        claims[rank].host == claims[first].host, "nodes: expected ranks ",
        first, " to ", first + static_cast<std::size_t>(size) - 1,
        " on one host, as a host has ", size, " ranks, but found rank ", first,
        " on ", claims[first].host, " and rank ", rank, " on ",
        claims[rank].host,
        "; number the ranks host by host, or set NDEV_PER_NODE");
  }
  return size;
}

int devices_per_node(const World& world) {
  const auto given = size_from_environment();
  // By rank: the size, and whether the variable says it.
  const auto table = gather_table(
      world.group(), {given.value_or(world.local_size()), given.has_value()});
  const auto cells = table.accessor<std::int64_t, 2>();
  std::vector<NodeClaim> claims;
  for (const std::string& host : world.hosts()) {
    const auto& of_rank = cells[static_cast<std::int64_t>(claims.size())];
    claims.push_back({host, static_cast<int>(of_rank[0]), of_rank[1] != 0});
  }
  return agreed_node_size(claims);
}

}  // namespace nfold
