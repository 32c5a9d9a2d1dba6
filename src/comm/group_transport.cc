#include "comm/group_transport.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "base/log.h"
#include "comm/gloo_backend.h"
#include "comm/hierarchical_transport.h"
#include "comm/host_blocks.h"
#include "comm/message_transport.h"
#include "comm/shm_transport.h"
#include "comm/store_text.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

// What a host has to say about its shared memory, if not what is wrong.
constexpr char kFine[] = "fine";

bool is_one_host(const std::vector<std::string>& hosts) {
  return std::all_of(hosts.begin(), hosts.end(), [&](const std::string& host) {
    return host == hosts.front();
  });
}

void warn_of_gloo(const TransportRequest& request, const std::string& why) {
  if (request.names.rank != 0) return;
  log_warning("group '{}' goes over gloo, which is slower: {}",
              request.group_name, why);
}

std::unique_ptr<GroupTransport> shm_or_null(c10d::Store& store,
                                            const TransportRequest& request,
                                            GroupWorker& worker) {
  try {
    return make_shm_transport(
        make_shm_channel(store, request.names, request.timeout, worker));
  } catch (const c10::Error& error) {
    if (request.transport == Transport::kShm) throw;
    warn_of_gloo(request, message_of(error));
    return nullptr;
  }
}

GroupLink make_link(const c10::intrusive_ptr<c10d::Store>& store,
                    const TransportRequest& request) {
  const auto size = static_cast<int>(request.names.global_ranks.size());
  GroupLink link;
  link.names = request.names;
  link.timeout = request.timeout;
  link.backend = make_gloo_backend(store, request.names.rank, size,
                                   request.timeout, request.interface_hint);
  return link;
}

// The first thing that is wrong on a host of the group, or kFine. Collective.
std::string verdict_of_hosts(c10d::Store& store, const HostBlocks& blocks,
                             int rank, const std::string& own,
                             std::chrono::milliseconds timeout) {
  std::vector<std::string> keys;
  for (int host = 0; host < blocks.num_hosts; ++host) {
    keys.push_back(fmt::format("shm_of_host/{}", host));
  }
  if (rank % blocks.ranks_per_host == 0) {
    set_text(store,
             keys[static_cast<std::size_t>(rank / blocks.ranks_per_host)], own);
  }
  store.wait(keys, timeout);
  for (const auto& key : keys) {
    const std::string verdict = text_at(store, key);
    if (verdict != kFine) return verdict;
  }
  return kFine;
}

// Among the ranks of this host. Null, on all hosts, where one has no room.
std::unique_ptr<GroupTransport> make_local_level(
    const c10::intrusive_ptr<c10d::Store>& store,
    const TransportRequest& request, const HostBlocks& blocks,
    GroupWorker& worker) {
  const int rank = request.names.rank;
  const int host = rank / blocks.ranks_per_host;
  const auto first = request.names.global_ranks.begin() +
                     std::ptrdiff_t{host} * blocks.ranks_per_host;
  const PeerNames names{rank % blocks.ranks_per_host,
                        {first, first + blocks.ranks_per_host}};
  std::unique_ptr<GroupTransport> local;
  std::string own = kFine;
  try {
    c10d::PrefixStore local_store(fmt::format("host/{}", host), store);
    local = make_shm_transport(
        make_shm_channel(local_store, names, request.timeout, worker));
  } catch (const c10::Error& error) {
    own = message_of(error);
  }
  const std::string verdict =
      verdict_of_hosts(*store, blocks, rank, own, request.timeout);
  if (verdict == kFine) return local;
  warn_of_gloo(request, verdict);
  if (local) worker.run_and_wait([&] { local->close(); });
  return nullptr;
}

// Those with this rank's place on the other hosts.
std::vector<int> column_peers(const HostBlocks& blocks, int rank) {
  const int size = blocks.num_hosts * blocks.ranks_per_host;
  std::vector<int> peers;
  for (int i = 1; i < blocks.num_hosts; ++i) {
    peers.push_back((rank + i * blocks.ranks_per_host) % size);
  }
  return peers;
}

}  // namespace

std::unique_ptr<GroupTransport> make_group_transport(
    const c10::intrusive_ptr<c10d::Store>& store,
    const TransportRequest& request, GroupWorker& worker) {
  if (request.transport != Transport::kGloo && is_one_host(request.hosts)) {
    auto shm = shm_or_null(*store, request, worker);
    if (shm) return shm;
  }
  TORCH_CHECK_VALUE(request.transport != Transport::kShm, "[rank ",
                    request.names.global_rank(request.names.rank), "] group '",
                    request.group_name, "' has the ranks ",
                    fmt::format("{}", request.names.global_ranks),
                    ", which are on several hosts and share no memory; use "
                    "transport gloo, or auto");
  const auto blocks = request.transport == Transport::kAuto
                          ? host_blocks(request.hosts)
                          : std::nullopt;
  auto local =
      blocks ? make_local_level(store, request, *blocks, worker) : nullptr;
  GroupLink link = make_link(store, request);
  auto flat = make_message_transport(link);
  if (!local) return flat;
  link.peers = column_peers(*blocks, request.names.rank);
  return make_hierarchical_transport(
      *blocks, request.names.rank,
      {std::move(local), make_message_transport(std::move(link)),
       std::move(flat)});
}

}  // namespace nfold
