// File: world_rendezvous.h
//
// How the ranks of a job find each other: the store that they share, and the
// roll call over it. Used by World only.
//
//   auto store = connect_store(job, options);
//   std::vector<RankHost> hosts = meet(*store, self, options);
//
// Every rank must call both. Callable from any thread.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "comm/launcher_environment.h"
#include "nfold/world.h"

namespace nfold {

// NFOLD_HOST, or empty.
std::string host_override();
// What is equal on two ranks exactly if they can share memory: the name that
// is given, if one is, else NFOLD_HOST, else the booted kernel and the file
// system behind /dev/shm.
std::string host_identity(const std::string& given = "");
// What people call this host: likewise, else its name.
std::string host_name(const std::string& given = "");

// This host's address on the way to `host`, as digits: one that peers which
// reach `host` can connect to. Empty if there is none.
std::string own_address_towards(const std::string& host, int port);

// Serves the store (rank 0, unless the launcher's agent does) or connects to
// it. Keys of other jobs and of earlier attempts at the same address do not
// meet those of this one. Raises c10::DistStoreError.
c10::intrusive_ptr<c10d::Store> connect_store(const LauncherEnvironment& job,
                                              const WorldOptions& options);

struct RollCall {
  int rank = 0;
  int size = 1;
  std::string host;
  // For errors: "127.0.0.1:29500".
  std::string address;
  // For errors.
  std::string host_name{};
};

struct RankHost {
  std::string identity;
  std::string name;
};

// Waits until every rank has called this; returns the host of each rank.
// Raises c10::DistStoreError that says who is missing, or that two processes
// claim one rank.
std::vector<RankHost> meet(c10d::Store& store, const RollCall& self,
                           const WorldOptions& options);

// Keeps the process that serves the store alive until the other ranks have
// made what needs it; call once, when done with the store. The server waits,
// but no longer than `limit`: ranks that died never say good-bye. Does not
// raise.
void say_goodbye(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                 int size, std::chrono::milliseconds limit) noexcept;

}  // namespace nfold
