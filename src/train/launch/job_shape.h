// File: job_shape.h
//
// How many ranks a launched job has, on how many hosts, and what each of them
// is told: the variables that torchrun would set.
//
//   JobShape shape{.ranks_per_host = 2, .num_hosts = 2, .host_number = 1,
//                  .master_addr = "node0", .master_port = 29500};
//   check(shape);
//   variables_of(shape, 0).at("RANK");  // "2"
//
// Each host has a launcher of its own; they know of each other only what their
// command lines say. Pure functions, callable from any thread.
#pragma once

#include <map>
#include <string>

namespace nfold::train {

// Where ranks of several hosts meet if nothing else is said: as torchrun.
inline constexpr int kDefaultMasterPort = 29500;

struct JobShape {
  // Equal on every host.
  int ranks_per_host = 1;
  int num_hosts = 1;
  // This host's, 0 to num_hosts - 1; -1: not given.
  int host_number = -1;
  // An address of host 0 that all hosts reach. Empty: not given.
  std::string master_addr{};
  // Where rank 0 listens; 0: not given.
  int master_port = 0;

  int num_ranks() const { return ranks_per_host * num_hosts; }
  bool is_first_host() const { return host_number <= 0; }
  int rank_of(int local_rank) const;
};

// Raises c10::ValueError for numbers out of range, and for several hosts
// without a host number or a master address.
void check(const JobShape& shape);

// RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK,
// GROUP_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of one rank of this host. On
// one host the address is 127.0.0.1 unless given; the port must be known.
std::map<std::string, std::string> variables_of(const JobShape& shape,
                                                int local_rank);

}  // namespace nfold::train
