#include "testing/thread_world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "base/log.h"
#include "comm/launcher_environment.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

// Shared with the threads, which may outlive the call.
struct Run {
  std::function<void(World&)> body;
  ThreadWorldOptions options;
  c10::intrusive_ptr<c10d::HashStore> store;
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr first_error;  // guarded by mutex
  std::vector<bool> has_returned;  // guarded by mutex
  int num_running = 0;             // guarded by mutex
};

std::exception_ptr run_rank(const Run& run, int rank, int size) {
  const std::string who = fmt::format("on rank {} of {}", rank, size);
  try {
    WorldOptions options;
    options.timeout = run.options.timeout;
    options.rendezvous_timeout = run.options.timeout;
    options.transport = run.options.transport;
    if (run.options.ranks_per_host > 0) {
      options.host = fmt::format("h{}", rank / run.options.ranks_per_host);
    }
    options.stall_check = run.options.stall_check;
    World world = World::from_store(run.store, rank, size, options);
    run.body(world);
    return nullptr;
  } catch (c10::Error& error) {
    error.add_context(who);
    return std::current_exception();
  } catch (const std::exception& error) {
    return std::make_exception_ptr(
        std::runtime_error(message_of(error) + " (" + who + ")"));
  }
}

}  // namespace

Transport transport_for_tests() {
  return with_variables_of(process_environment(), {}).transport;
}

void run_ranks(int num_ranks, const std::function<void(World&)>& body,
               const ThreadWorldOptions& options) {
  auto run = std::make_shared<Run>();
  run->body = body;
  run->options = options;
  run->store = c10::make_intrusive<c10d::HashStore>();
  run->has_returned.resize(static_cast<std::size_t>(num_ranks));
  run->num_running = num_ranks;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([run, rank, num_ranks] {
      set_log_rank(rank, num_ranks);
      auto error = run_rank(*run, rank, num_ranks);
      const std::lock_guard lock(run->mutex);
      if (error && !run->first_error) run->first_error = error;
      run->has_returned[static_cast<std::size_t>(rank)] = true;
      --run->num_running;
      run->changed.notify_all();
    });
  }
  std::unique_lock lock(run->mutex);
  const bool is_complete = run->changed.wait_for(
      lock, options.limit, [&] { return run->num_running == 0; });
  if (!is_complete) {
    std::vector<int> missing;
    for (int rank = 0; rank < num_ranks; ++rank) {
      if (!run->has_returned[static_cast<std::size_t>(rank)]) {
        missing.push_back(rank);
      }
    }
    std::string text = fmt::format(
        "run_ranks: of {} ranks, {} did not return within {} s", num_ranks,
        fmt::join(missing, ", "), options.limit.count() / 1000.0);
    if (run->first_error) {
      try {
        std::rethrow_exception(run->first_error);
      } catch (const std::exception& error) {
        text += "; the first error was: " + message_of(error);
      }
    }
    lock.unlock();
    for (auto& thread : threads) thread.detach();
    throw std::runtime_error(text);
  }
  lock.unlock();
  for (auto& thread : threads) thread.join();
  if (run->first_error) std::rethrow_exception(run->first_error);
}

void run_ranks_over_gloo(int num_ranks, const std::function<void(World&)>& body,
                         ThreadWorldOptions options) {
  options.transport = Transport::kGloo;
  run_ranks(num_ranks, body, options);
}

}  // namespace nfold
