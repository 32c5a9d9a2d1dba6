// File: thread_world.h
//
// Ranks as threads of the test: the quickest way to test anything that
// communicates, and the one that debuggers and sanitizers see through.
//
//   run_ranks(4, [](World& world) {
//     auto tensor = at::full({8}, world.rank());
//     all_reduce(world.group(), tensor).wait();
//     EXPECT_EQ(tensor[0].item<float>(), 6);
//   });
//
// The ranks share the process: its environment, random state and thread
// settings. A rank that must die, or must start like a real one, is for
// process_world.h.
#pragma once

#include <chrono>
#include <functional>

#include "nfold/world.h"

namespace nfold {

Transport transport_for_tests();

struct ThreadWorldOptions {
  // Of the world's collectives.
  std::chrono::milliseconds timeout = std::chrono::seconds(30);
  // For all ranks to return.
  std::chrono::milliseconds limit = std::chrono::seconds(120);
  // NFOLD_TRANSPORT, which a ctest entry may set, where it is set.
  Transport transport = transport_for_tests();
  // 0: all are on one host. Else hosts "h0", "h1", ... of so many ranks each.
  int ranks_per_host = 0;
  // WorldOptions::stall_check.
  std::chrono::milliseconds stall_check = std::chrono::seconds(2);
};

// Runs the body once for each rank, each on a thread of its own, and returns
// when all have. Rethrows the exception that came first, with the rank added
// to its text; its type is kept if it is a c10::Error, and else becomes
// std::runtime_error. Raises std::runtime_error that names the ranks that did
// not return within the limit; their threads are left behind.
void run_ranks(int num_ranks, const std::function<void(World&)>& body,
               const ThreadWorldOptions& options = {});

// As above over gloo, for tests of what goes from rank to rank when ranks do
// not share memory: gathers as collectives, and the memory that they take.
void run_ranks_over_gloo(int num_ranks, const std::function<void(World&)>& body,
                         ThreadWorldOptions options = {});

}  // namespace nfold
