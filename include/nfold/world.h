// File: nfold/world.h
//
// All processes of a job: who this one is, where it runs, and the group of
// all ranks. Made once per process.
//
//   auto world = nfold::World::from_environment();
//   if (world.rank() == 0) { ... }
//
// Recognised launchers, in this order: torchrun (and anything else that sets
// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, such as `nfold launch`),
// Open MPI, MPICH and Intel MPI, Slurm, none. docs/launchers.md lists the
// variables. Sets of variables that contradict each other are an error.
//
// A world of several ranks ignores SIGPIPE for the whole process, unless the
// program handles it: a peer that dies must be an error, not a silent end.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "nfold/group.h"

namespace c10d {
class Store;
}

namespace nfold {

enum class Launcher { kNone, kTorchrun, kOpenMpi, kMpich, kSlurm };
const char* name_of(Launcher launcher);

// How the bytes of a group travel between CPU ranks. kShm: through memory that
// the ranks share; they must be on one host. kGloo: over TCP. kAuto: kShm where
// all ranks of the group are on one host; both where it has several hosts with
// equally many ranks, at least two, next to each other in the group (shared
// memory inside a host, TCP across hosts); else, or where a host has no room
// for it, kGloo.
enum class Transport { kAuto, kShm, kGloo };
const char* name_of(Transport transport);

// The environment variables NFOLD_TIMEOUT, NFOLD_RENDEZVOUS_TIMEOUT and
// NFOLD_STALL_CHECK, in seconds, and NFOLD_TRANSPORT (auto, shm or gloo)
// override them in World::from_environment.
struct WorldOptions {
  // How long a collective may wait for the other ranks.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  // How long to wait for all ranks to appear.
  std::chrono::milliseconds rendezvous_timeout = std::chrono::minutes(5);
  // How long ranks wait before they look whether they wait for each other in
  // different groups, so that none can ever go on; if so each of them raises,
  // after about three times as long. A rank that is merely slow is never an
  // error before the time-out. 0: ranks do not look.
  std::chrono::milliseconds stall_check = std::chrono::seconds(2);
  // Of the group of all ranks, and of groups that do not say otherwise.
  Transport transport = Transport::kAuto;
  // Ranks with the same name count as on one host; empty: found out. For tests
  // and for containers that hide what they share; NFOLD_HOST does the same.
  std::string host{};
};

class World {
 public:
  // Must be called by every process of the job. Raises c10::ValueError when
  // the launcher's variables are incomplete or contradict each other, and
  // c10::DistStoreError when the ranks cannot find each other.
  static World from_environment(const WorldOptions& options = {});

  // A world over a store that the caller made: ranks as threads in tests, or
  // a front end that has its own rendezvous.
  static World from_store(c10::intrusive_ptr<c10d::Store> store, int rank,
                          int size, const WorldOptions& options = {});

  World(World&&) noexcept;
  World& operator=(World&&) noexcept;
  ~World();

  int rank() const;
  int size() const;
  // Rank and number of ranks on this host.
  int local_rank() const;
  int local_size() const;
  Launcher launcher() const;
  // Equal on two ranks exactly when they run on one host (NFOLD_HOST
  // overrides it in tests).
  const std::string& host() const;
  // That of every rank.
  std::vector<std::string> hosts() const;
  // The group of all ranks, named "world".
  Group& group() const;
  // Every rank must call this in the same order with the same arguments; a
  // rank outside of `global_ranks` gets nullptr. kAuto: as the world's options
  // say. Raises c10::ValueError for kShm if the ranks are on several hosts.
  std::unique_ptr<Group> new_group(
      const std::string& name, const std::vector<int>& global_ranks,
      Transport transport = Transport::kAuto) const;

 private:
  struct Impl;
  explicit World(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nfold
