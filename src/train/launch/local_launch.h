// File: local_launch.h
//
// Runs a program as N ranks on this machine and waits for them: the work of
// `nfold launch` and of `nfold train --nproc N`.
//
//   LaunchOptions options{.command = {"prog", "arg"}};
//   options.shape.ranks_per_host = 4;
//   return launch_local_ranks(options);
//
// Each rank finds the variables that torchrun would set. When one fails, the
// others get SIGTERM and 5 s later SIGKILL, and the error of the rank that
// failed first is shown, once (see failure_choice.h for which that is).
// SIGINT, SIGTERM and SIGHUP are forwarded. A job of several hosts has a
// launcher on each, and ranks of other hosts learn of a failure through their
// collectives. docs/launchers.md has the details.
//
// Call it from the main thread of a process without other children, once.
#pragma once

#include <string>
#include <vector>

#include "train/launch/job_shape.h"

namespace nfold::train {

struct LaunchOptions {
  // Without a port one host takes a free one, several kDefaultMasterPort.
  JobShape shape{};
  // Program, looked up in PATH, and its arguments.
  std::vector<std::string> command{};
  // Folder for rank_K.log with all that rank K > 0 prints. Empty: no files.
  std::string log_dir{};
};

// Returns 0 if every rank did, else the exit code of the rank that failed
// first, 128 + signal if a signal killed it. Raises c10::ValueError for wrong
// options, a port in use, and inside of another launcher; nothing was started
// then.
int launch_local_ranks(const LaunchOptions& options);

// Runs the command line of this process again as `num_ranks` ranks. In them
// is_launched_rank() is true, so that a command can begin with
//
//   if (num_ranks > 1 && !is_launched_rank()) {
//     throw CLI::RuntimeError(relaunch_this_command(num_ranks));
//   }
int relaunch_this_command(int num_ranks);

// Whether this process is a rank that launch_local_ranks started.
bool is_launched_rank();

}  // namespace nfold::train
