#include "comm/world_rendezvous.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "comm/bounded_call.h"
#include "comm/peer_errors.h"
#include "comm/store_text.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr char kHostOverride[] = "NFOLD_HOST";
constexpr char kGoodbyeKey[] = "goodbye";

std::string rank_key(const char* what, int rank) {
  return fmt::format("{}/{}", what, rank);
}

// The part of a c10d error that tells why; its own advice is about torch.
std::string first_line_of(const std::exception& error) {
  const std::string text = message_of(error);
  return text.substr(0, text.find('\n'));
}

std::string port_advice(const LauncherEnvironment& job) {
  if (job.is_port_derived) {
    return "The port was derived from the job's id; set MASTER_PORT to a free "
           "one on every rank to choose another.";
  }
  return "Choose another port with MASTER_PORT (nfold launch and torchrun "
         "choose a free one if none is given).";
}

[[noreturn]] void raise_no_store(const LauncherEnvironment& job, bool serves,
                                 const WorldOptions& options,
                                 const std::exception& error) {
  const std::string address =
      fmt::format("{}:{}", job.master_addr, job.master_port);
  if (serves) {
    C10_THROW_ERROR(
        DistStoreError,
        fmt::format("[rank {}] cannot serve the rendezvous of {} ranks at {}: "
                    "{}. Is the port in use? {}",
                    job.rank, job.size, address, first_line_of(error),
                    port_advice(job)));
  }
  C10_THROW_ERROR(
      DistStoreError,
      fmt::format("[rank {}] no rendezvous of {} ranks at {} within {} (from "
                  "launcher {}): {}. Does {} run, and is this its host? "
                  "MASTER_ADDR must name the host of rank 0.",
                  job.rank, job.size, address,
                  seconds_text(options.rendezvous_timeout),
                  name_of(job.launcher), first_line_of(error),
                  job.uses_agent_store ? "the launcher's agent" : "rank 0"));
}

}  // namespace

std::string host_override() {
  const char* text = std::getenv(kHostOverride);
  return text == nullptr ? "" : text;
}

std::string host_identity(const std::string& given) {
  const std::string chosen = given.empty() ? host_override() : given;
  if (!chosen.empty()) return chosen;
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  // Without /proc the name is the best there is.
  if (boot_id.empty()) boot_id = host_name();
  struct stat shared_memory {};
  const bool has_shared_memory = ::stat("/dev/shm", &shared_memory) == 0;
  return fmt::format("{}:{}", boot_id,
                     has_shared_memory ? shared_memory.st_dev : 0);
}

std::string host_name(const std::string& given) {
  const std::string chosen = given.empty() ? host_override() : given;
  if (!chosen.empty()) return chosen;
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::string own_address_towards(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints,
                    &found) != 0) {
    return {};
  }
  std::string result;
  for (const addrinfo* at = found; at != nullptr && result.empty();
       at = at->ai_next) {
    // Connecting a datagram socket sends nothing: it asks for the route.
    const int socket = ::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    sockaddr_storage own{};
    socklen_t own_bytes = sizeof(own);
    auto* address = reinterpret_cast<sockaddr*>(&own);
    char digits[NI_MAXHOST];
    if (::connect(socket, at->ai_addr, at->ai_addrlen) == 0 &&
        ::getsockname(socket, address, &own_bytes) == 0 &&
        ::getnameinfo(address, own_bytes, digits, sizeof(digits), nullptr, 0,
                      NI_NUMERICHOST) == 0) {
      result = digits;
    }
    ::close(socket);
  }
  ::freeaddrinfo(found);
  return result;
}

c10::intrusive_ptr<c10d::Store> connect_store(const LauncherEnvironment& job,
                                              const WorldOptions& options) {
  if (job.size == 1) return c10::make_intrusive<c10d::HashStore>();
  const bool serves = job.rank == 0 && !job.uses_agent_store;
  c10d::TCPStoreOptions store_options;
  store_options.port = static_cast<std::uint16_t>(job.master_port);
  store_options.isServer = serves;
  // The roll call waits, and says who is missing; the store would not.
  store_options.waitWorkers = false;
  store_options.timeout = options.rendezvous_timeout;
  c10::intrusive_ptr<c10d::Store> store;
  try {
    store = c10::make_intrusive<c10d::TCPStore>(job.master_addr, store_options);
  } catch (const std::exception& error) {
    raise_no_store(job, serves, options, error);
  }
  return c10::make_intrusive<c10d::PrefixStore>(
      fmt::format("nfold/{}", job.attempt), std::move(store));
}

std::vector<RankHost> meet(c10d::Store& store, const RollCall& self,
                           const WorldOptions& options) {
  std::vector<std::string> keys;
  for (int rank = 0; rank < self.size; ++rank) {
    keys.push_back(rank_key("host", rank));
  }
  try {
    if (store.add(rank_key("claim", self.rank), 1) != 1) {
      C10_THROW_ERROR(
          DistStoreError,
          fmt::format("[rank {}] another process is already rank {} of {} at "
                      "{}. Two jobs use one address, or one job was started "
                      "twice: give each its own MASTER_PORT.",
                      self.rank, self.rank, self.size, self.address));
    }
    set_text(store, keys[static_cast<std::size_t>(self.rank)],
             fmt::format("{}\n{}\n{}", self.size, self.host, self.host_name));
    store.wait(keys, options.rendezvous_timeout);
  } catch (const c10::DistStoreError& error) {
    // A wait that ran out of time. What is below may raise too, if the store
    // is gone; that error then says so.
    if (message_of(error).rfind("[rank", 0) == 0) throw;
    std::string missing;
    int num_missing = 0;
    for (int rank = 0; rank < self.size; ++rank) {
      if (store.check({keys[static_cast<std::size_t>(rank)]})) continue;
      constexpr int kMaxNamed = 8;
      if (++num_missing <= kMaxNamed) {
        missing += fmt::format("{}{}", missing.empty() ? "" : ", ", rank);
      } else if (num_missing == kMaxNamed + 1) {
        missing += ", ...";
      }
    }
    if (num_missing == 0) throw;
    C10_THROW_ERROR(
        DistStoreError,
        fmt::format(
            "[rank {}] {} of {} ranks arrived at {} within {}; missing: "
            "{}. Did every rank start, with the same WORLD_SIZE and "
            "MASTER_ADDR? WorldOptions::rendezvous_timeout sets the "
            "limit.",
            self.rank, self.size - num_missing, self.size, self.address,
            seconds_text(options.rendezvous_timeout), missing));
  } catch (const c10::DistError& error) {
    C10_THROW_ERROR(
        DistStoreError,
        fmt::format("[rank {}] the rendezvous of {} ranks at {} broke off: {}. "
                    "The process that serves it (rank 0 or the launcher's "
                    "agent) has probably ended; look at its error.",
                    self.rank, self.size, self.address, first_line_of(error)));
  }
  std::vector<RankHost> hosts;
  for (int rank = 0; rank < self.size; ++rank) {
    const std::string entry =
        text_at(store, keys[static_cast<std::size_t>(rank)]);
    const std::size_t end_of_size = entry.find('\n');
    const std::string size = entry.substr(0, end_of_size);
    if (size != std::to_string(self.size)) {
      C10_THROW_ERROR(
          DistStoreError,
          fmt::format("[rank {}] expects {} ranks at {}, but rank {} expects "
                      "{}; start every rank with the same number of ranks",
                      self.rank, self.size, self.address, rank, size));
    }
    const std::size_t end_of_host = entry.find('\n', end_of_size + 1);
    hosts.push_back(
        {entry.substr(end_of_size + 1, end_of_host - end_of_size - 1),
         entry.substr(end_of_host + 1)});
  }
  return hosts;
}

void say_goodbye(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                 int size, std::chrono::milliseconds limit) noexcept {
  const auto call = [store, rank, size, limit]() -> std::string {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    auto num_gone = store->add(kGoodbyeKey, 1);
    // Only the process that serves the store must outlast the others. It
    // polls: a store cannot wait for a number.
    while (rank == 0 && num_gone < size &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      num_gone = store->add(kGoodbyeKey, 0);
    }
    return {};
  };
  try {
    // Twice, as a store that answers is asked until the limit.
    answer_within(2 * limit, call);
  } catch (...) {
    // The store is gone, so there is nobody left to wait for.
  }
}

}  // namespace nfold
