#include "nfold/world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "base/log.h"
#include "comm/group_impl.h"
#include "comm/group_transport.h"
#include "comm/launcher_environment.h"
#include "comm/shm_channel.h"
#include "comm/stall_watch.h"
#include "comm/world_rendezvous.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr char kWorldGroup[] = "world";
// The user's choice of a network, under the name that torch has for it.
constexpr char kInterfaceVariable[] = "GLOO_SOCKET_IFNAME";
// How long rank 0 goes on serving the store for ranks that still make groups.
constexpr std::chrono::milliseconds kGoodbyeLimit = std::chrono::seconds(2);

std::string list_of(const std::vector<int>& ranks) {
  return fmt::format("[{}]", fmt::join(ranks, ", "));
}

void check_group_ranks(const std::string& name, const std::vector<int>& ranks,
                       int rank, int size) {
  TORCH_CHECK_VALUE(!ranks.empty(), "[rank ", rank, "] group '", name,
                    "' has no ranks");
  std::vector<int> sorted = ranks;
  std::sort(sorted.begin(), sorted.end());
  TORCH_CHECK_VALUE(sorted.front() >= 0 && sorted.back() < size, "[rank ", rank,
                    "] group '", name, "' has the ranks ", list_of(ranks),
                    " but those of the world are 0 to ", size - 1);
  TORCH_CHECK_VALUE(
      std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
      "[rank ", rank, "] group '", name, "' has the ranks ", list_of(ranks),
      ", one of them twice");
}

// gloo writes with writev, which raises SIGPIPE where the peer has died: by
// default that ends this process without a word, where an error is wanted that
// names the peer. A handler of the program's own stays.
void ignore_broken_pipes() {
  struct sigaction action {};
  ::sigaction(SIGPIPE, nullptr, &action);
  if (action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
}

}  // namespace

struct World::Impl {
  Impl(LauncherEnvironment environment, WorldOptions world_options,
       c10::intrusive_ptr<c10d::Store> shared_store)
      : job(std::move(environment)),
        options(world_options),
        store(std::move(shared_store)) {}

  ~Impl() {
    group.reset();
    watch.reset();
    // An error is on its way to the user; other ranks may be dead, and
    // waiting for them would only delay the message.
    if (std::uncaught_exceptions() > 0) return;
    if (owns_store && job.size > 1) {
      say_goodbye(store, job.rank, job.size, kGoodbyeLimit);
    }
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // Meets the other ranks and makes the group of all.
  void join();
  std::unique_ptr<Group> make_group_of(const std::string& name,
                                       const std::vector<int>& ranks,
                                       Transport transport);
  bool is_one_host(const std::vector<int>& ranks) const;
  // Of each of the ranks; empty if all are on one host.
  std::vector<std::string> host_names_of(const std::vector<int>& ranks) const;
  // A network interface or address of this host that every rank of the group
  // reaches, or empty for the backend's own choice.
  std::string interface_hint(const std::vector<int>& ranks) const;

  LauncherEnvironment job;
  WorldOptions options;
  c10::intrusive_ptr<c10d::Store> store;
  bool owns_store = false;
  int local_rank = 0;
  int local_size = 1;
  std::vector<RankHost> hosts;
  std::shared_ptr<BlockedCallers> callers;  // null: nobody watches
  std::unique_ptr<StallWatch> watch;
  std::unique_ptr<Group> group;
  // Groups made so far. Equal on all ranks, since all make them in the same
  // order; keeps the keys of groups with the same name apart.
  int num_groups = 0;
};

void World::Impl::join() {
  if (job.size > 1) ignore_broken_pipes();
  const std::string address =
      job.master_addr.empty()
          ? std::string("the caller's store")
          : fmt::format("{}:{}", job.master_addr, job.master_port);
  hosts = meet(*store,
               {job.rank, job.size, host_identity(options.host), address,
                host_name(options.host)},
               options);
  const auto self = hosts.begin() + job.rank;
  const auto is_here = [&](const RankHost& other) {
    return other.identity == self->identity;
  };
  // The launcher's word counts, as programs choose their device by it; but
  // it knows nothing of hosts that a test makes up.
  if (job.local_rank && job.local_size && options.host.empty() &&
      host_override().empty()) {
    local_rank = *job.local_rank;
    local_size = *job.local_size;
  } else {
    local_rank = static_cast<int>(std::count_if(hosts.begin(), self, is_here));
    local_size =
        static_cast<int>(std::count_if(hosts.begin(), hosts.end(), is_here));
  }
  std::vector<int> ranks(static_cast<std::size_t>(job.size));
  for (int rank = 0; rank < job.size; ++rank) {
    ranks[static_cast<std::size_t>(rank)] = rank;
  }
  if (job.size > 1 && options.stall_check.count() > 0) {
    callers = std::make_shared<BlockedCallers>();
    watch = std::make_unique<StallWatch>(
        StallWatch::Place{store, job.rank, job.size}, callers,
        times_of(options.stall_check));
  }
  group = make_group_of(kWorldGroup, ranks, options.transport);
}

bool World::Impl::is_one_host(const std::vector<int>& ranks) const {
  const auto identity_of = [this](int rank) -> const std::string& {
    return hosts[static_cast<std::size_t>(rank)].identity;
  };
  return std::all_of(ranks.begin(), ranks.end(), [&](int rank) {
    return identity_of(rank) == identity_of(ranks.front());
  });
}

std::vector<std::string> World::Impl::host_names_of(
    const std::vector<int>& ranks) const {
  std::vector<std::string> names;
  if (is_one_host(ranks)) return names;
  for (const int rank : ranks) {
    names.push_back(hosts[static_cast<std::size_t>(rank)].name);
  }
  return names;
}

std::string World::Impl::interface_hint(const std::vector<int>& ranks) const {
  if (is_one_host(ranks)) return "lo";
  const char* chosen = std::getenv(kInterfaceVariable);
  if (chosen != nullptr && *chosen != '\0') return chosen;
  // All ranks reach the master, so the way to it leads to the network that
  // they share; a host's own name may lead to its loopback interface.
  if (job.master_addr.empty()) return "";
  return own_address_towards(job.master_addr, job.master_port);
}

std::unique_ptr<Group> World::Impl::make_group_of(const std::string& name,
                                                  const std::vector<int>& ranks,
                                                  Transport transport) {
  check_group_ranks(name, ranks, job.rank, job.size);
  const int number = num_groups++;
  const auto self = std::find(ranks.begin(), ranks.end(), job.rank);
  if (self == ranks.end()) return nullptr;
  GroupSpec spec;
  spec.name = name;
  spec.global_ranks = ranks;
  spec.rank = static_cast<int>(self - ranks.begin());
  spec.host_names = host_names_of(ranks);
  if (!spec.host_names.empty()) spec.store_host = hosts.front().name;
  spec.timeout = options.timeout;
  if (ranks.size() == 1) return make_group(std::move(spec), nullptr);
  spec.number = number;
  spec.callers = callers;
  auto group_store = c10::make_intrusive<c10d::PrefixStore>(
      fmt::format("group/{}/{}", number, name), store);
  spec.store = c10::make_intrusive<c10d::PrefixStore>("failure", group_store);
  spec.job_store = c10::make_intrusive<c10d::PrefixStore>("failure", store);
  TransportRequest request;
  request.group_name = name;
  request.names = {spec.rank, ranks, spec.host_names};
  for (const int rank : ranks) {
    request.hosts.push_back(hosts[static_cast<std::size_t>(rank)].identity);
  }
  request.transport = transport;
  request.timeout = options.timeout;
  request.interface_hint = interface_hint(ranks);
  auto worker = std::make_unique<GroupWorker>(name);
  auto way = make_group_transport(group_store, request, *worker);
  if (way->shm_channel()) way->shm_channel()->note_waits(callers, number);
  return make_group(std::move(spec), std::move(way), std::move(worker));
}

const char* name_of(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kShm:
      return "shm";
    case Transport::kGloo:
      return "gloo";
  }
  return "unknown";
}

World::World(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
World::World(World&&) noexcept = default;
World& World::operator=(World&&) noexcept = default;
World::~World() = default;

World World::from_environment(const WorldOptions& given_options) {
  const EnvironmentMap variables = process_environment();
  LauncherEnvironment job = read_launcher_environment(variables);
  const WorldOptions options = with_variables_of(variables, given_options);
  set_process_log_rank(job.rank, job.size);
  auto store = connect_store(job, options);
  auto impl = std::make_unique<Impl>(std::move(job), options, std::move(store));
  impl->owns_store = true;
  impl->join();
  const LauncherEnvironment& joined = impl->job;
  if (joined.size > 1) {
    log_info("world: {} ranks, {} on this host, met at {}:{} (variables of {})",
             joined.size, impl->local_size, joined.master_addr,
             joined.master_port, name_of(joined.launcher));
  } else {
    log_debug("world: one process, launcher {}", name_of(joined.launcher));
  }
  return World(std::move(impl));
}

World World::from_store(c10::intrusive_ptr<c10d::Store> store, int rank,
                        int size, const WorldOptions& options) {
  TORCH_CHECK_VALUE(store, "World::from_store: the store is null");
  TORCH_CHECK_VALUE(size >= 1 && rank >= 0 && rank < size,
                    "World::from_store: rank ", rank, " of ", size,
                    " ranks; expected 0 <= rank < size");
  LauncherEnvironment job;
  job.rank = rank;
  job.size = size;
  auto impl = std::make_unique<Impl>(std::move(job), options, std::move(store));
  impl->join();
  return World(std::move(impl));
}

int World::rank() const { return impl_->job.rank; }
int World::size() const { return impl_->job.size; }
int World::local_rank() const { return impl_->local_rank; }
int World::local_size() const { return impl_->local_size; }
Launcher World::launcher() const { return impl_->job.launcher; }

const std::string& World::host() const {
  return impl_->hosts[static_cast<std::size_t>(impl_->job.rank)].identity;
}

std::vector<std::string> World::hosts() const {
  std::vector<std::string> identities;
  for (const auto& host : impl_->hosts) identities.push_back(host.identity);
  return identities;
}

Group& World::group() const { return *impl_->group; }

std::unique_ptr<Group> World::new_group(const std::string& name,
                                        const std::vector<int>& global_ranks,
                                        Transport transport) const {
  return impl_->make_group_of(
      name, global_ranks,
      transport == Transport::kAuto ? impl_->options.transport : transport);
}

}  // namespace nfold
