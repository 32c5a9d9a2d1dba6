// A program for the launcher's tests: the smallest one that uses World.
//
//   launch_probe sum              adds 1 + ... + N; rank 0 prints the result
//   launch_probe place            every rank writes where it is to stdout
//   launch_probe fail RANK HOW    after the start, RANK ends as HOW says and
//                                 the others wait for it in a collective;
//                                 HOW: exit, throw, kill, segfault, abort
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/world.h"
#include "train/launch/error_report.h"

namespace {

void print_sum(const nfold::World& world) {
  at::Tensor value = at::full({1}, world.rank() + 1.0);
  nfold::all_reduce(world.group(), value).wait();
  if (world.rank() != 0) return;
  fmt::print("sum {} of {} ranks, launcher {}\n", value.item<float>(),
             world.size(), nfold::name_of(world.launcher()));
}

void print_place(const nfold::World& world) {
  fmt::print("rank {} of {}, local {} of {}, host {}\n", world.rank(),
             world.size(), world.local_rank(), world.local_size(),
             world.host());
}

[[noreturn]] void end_as(const std::string& how) {
  fmt::print(stderr, "about to {}\n", how);
  std::fflush(stderr);
  if (how == "exit") std::_Exit(3);
  if (how == "kill") std::raise(SIGKILL);
  if (how == "segfault") {
    std::signal(SIGSEGV, SIG_DFL);
    std::raise(SIGSEGV);
  }
  if (how == "abort") std::abort();
  TORCH_CHECK_VALUE(false, "the probe was told to fail");
}

void fail(const nfold::World& world, int rank, const std::string& how) {
  nfold::barrier(world.group()).wait();
  if (world.rank() == rank) end_as(how);
  at::Tensor value = at::zeros({4});
  nfold::all_reduce(world.group(), value).wait();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string mode = argc > 1 ? argv[1] : "sum";
    const nfold::World world = nfold::World::from_environment();
    if (mode == "sum") print_sum(world);
    if (mode == "place") print_place(world);
    if (mode == "fail" && argc == 4) fail(world, std::atoi(argv[2]), argv[3]);
  } catch (const std::exception& error) {
    nfold::train::report_error(error);
    return 1;
  }
  return 0;
}
