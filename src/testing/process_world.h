// File: process_world.h
//
// Ranks as processes: for what threads cannot show, such as a rank that dies
// and how a job starts. Each rank is the running test binary again, started
// with the variables of a launcher and the name of a body.
//
//   const ProcessBody kWaits("Waits", [] {
//     auto world = World::from_environment();
//     std::puts("ready");
//     std::fflush(stdout);
//     barrier(world.group()).wait();
//   });
//
//   TEST(Barrier, NamesRankThatDied) {
//     ProcessWorld ranks("Waits", 3);
//     ranks.wait_for_output(2, "ready");
//     ranks.kill(2);
//     for (const auto& rank : ranks.wait()) ...
//   }
//
// Bodies are namespace-scope constants of the test's source. A rank exits with
// 0 when its body returns, and with 1, the text of the exception on standard
// error, when it throws or a gtest expectation in it failed.
//
// A process is started afresh rather than forked, because torch has threads
// that a fork does not copy. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nfold {

// Registers a body. Names are unique in a test binary.
class ProcessBody {
 public:
  ProcessBody(const char* name, std::function<void()> body);
};

struct ProcessWorldOptions {
  // For a rank to end, from its start. Then it is killed.
  std::chrono::milliseconds limit = std::chrono::seconds(60);
  // Added to, or in place of, the variables of this process and RANK,
  // LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
  std::map<std::string, std::string> environment{};
};

struct RankResult {
  int exit_code = -1;    // -1 if a signal ended it
  int signal = 0;        // that ended it, or 0
  bool is_late = false;  // killed for exceeding the limit
  std::string output;    // standard output and standard error
};

class ProcessWorld {
 public:
  ProcessWorld(const std::string& body, int num_ranks,
               ProcessWorldOptions options = {});
  // Kills what still runs.
  ~ProcessWorld();
  ProcessWorld(const ProcessWorld&) = delete;
  ProcessWorld& operator=(const ProcessWorld&) = delete;

  // Blocks until the rank has written the text. Raises std::runtime_error with
  // what it wrote instead when it ends or the limit passes before.
  void wait_for_output(int rank, const std::string& text);
  void kill(int rank, int signal = SIGKILL);
  // Also of a rank that has ended.
  pid_t pid(int rank) const;
  // Waits for all ranks, up to the limit. One result for each.
  std::vector<RankResult> wait();

 private:
  struct Rank;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

// A TCP port of this host that nobody listened on just now.
int free_port();

}  // namespace nfold
