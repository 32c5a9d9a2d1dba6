// File: launcher_environment.h
//
// What the environment variables of a process say about its job: which rank
// it is, of how many, and where the ranks meet. A pure function of the
// variables, so that every launcher can be tested without it.
//
//   auto job = nfold::read_launcher_environment(nfold::process_environment());
//   if (job.size > 1) connect(job.master_addr, job.master_port);
//
// docs/launchers.md lists the variables and their order of precedence.
// Callable from any thread, as long as no other thread changes the
// environment.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "nfold/world.h"

namespace nfold {

using EnvironmentMap = std::map<std::string, std::string, std::less<>>;

// The variables of this process.
EnvironmentMap process_environment();

struct LauncherEnvironment {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;
  // Absent where the launcher does not say; World then counts hosts.
  std::optional<int> local_rank;
  std::optional<int> local_size;
  // Where rank 0 serves the store. Empty and 0 if there is one rank.
  std::string master_addr;
  int master_port = 0;
  // The port was computed from the job's id, not given by anyone.
  bool is_port_derived = false;
  // The launcher's agent already serves the store: rank 0 is a client too.
  bool uses_agent_store = false;
  // Differs between jobs, and between restarts of one job, that may meet at
  // the same store. Equal on all ranks.
  std::string attempt;
};

// Raises c10::ValueError that lists every variable that is missing, not a
// number, out of range, or in contradiction to another.
LauncherEnvironment read_launcher_environment(const EnvironmentMap& variables);

// The options with NFOLD_TIMEOUT, NFOLD_RENDEZVOUS_TIMEOUT and
// NFOLD_STALL_CHECK, in seconds, in place of what the program chose. Raises
// c10::ValueError for anything but a number above zero, or 0 for the last.
WorldOptions with_variables_of(const EnvironmentMap& variables,
                               WorldOptions options);

// "node[03-05,9],other" -> "node03": the first host of a Slurm node list.
// Raises c10::ValueError for an empty list or an unclosed bracket.
std::string first_host_of(std::string_view node_list);

// The port for a job that has an id but no MASTER_PORT: 10000 to 29999, below
// the range that Linux gives to outgoing connections.
int port_of_job(std::string_view job_id);

}  // namespace nfold
