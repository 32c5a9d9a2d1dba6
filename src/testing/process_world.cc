#include "testing/process_world.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "nfold/errors.h"

extern char** environ;

namespace nfold {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kBodyVariable[] = "NFOLD_TEST_BODY";
constexpr std::chrono::milliseconds kExitPoll{5};

std::map<std::string, std::function<void()>>& bodies() {
  static std::map<std::string, std::function<void()>> registry;
  return registry;
}

// In a process that was started as a rank, runs the body in place of the
// tests: gtest sets environments up before the first test.
class RankEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* name = std::getenv(kBodyVariable);
    if (name == nullptr) return;
    int exit_code = 1;
    try {
      const auto body = bodies().find(name);
      if (body == bodies().end()) {
        throw std::runtime_error(
            fmt::format("no ProcessBody is called '{}'", name));
      }
      body->second();
      exit_code = ::testing::Test::HasFailure() ? 1 : 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", message_of(error).c_str());
    }
    std::fflush(nullptr);
    // Without the destructors of the test's globals: a rank is not a test.
    std::_Exit(exit_code);
  }
};

[[noreturn]] void raise_errno(const char* what, int error) {
  throw std::runtime_error(
      fmt::format("process_world: {}: {}", what, std::strerror(error)));
}

std::vector<std::string> environment_of(
    const std::map<std::string, std::string>& changes) {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const auto equals = text.find('=');
    variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  // Of gtest in the parent: a shard or a filter with no tests would skip the
  // environment, and a report would be overwritten.
  for (const char* name :
       {"GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX", "GTEST_SHARD_STATUS_FILE",
        "GTEST_FILTER", "GTEST_OUTPUT", "XML_OUTPUT_FILE"}) {
    variables.erase(name);
  }
  for (const auto& [name, value] : changes) variables[name] = value;
  std::vector<std::string> entries;
  for (const auto& [name, value] : variables) {
    entries.push_back(name + "=" + value);
  }
  return entries;
}

}  // namespace

struct ProcessWorld::Rank {
  pid_t pid = -1;
  int output_fd = -1;
  Clock::time_point deadline;
  bool has_ended = false;
  RankResult result;

  ~Rank() {
    if (!has_ended && pid > 0) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    if (output_fd >= 0) ::close(output_fd);
  }

  void start(const std::map<std::string, std::string>& changes);
  // Waits a little for output and takes what there is.
  void read_output(std::chrono::milliseconds patience);
  bool check_ended();
  void wait();
};

void ProcessWorld::Rank::start(
    const std::map<std::string, std::string>& changes) {
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) raise_errno("pipe", errno);
  output_fd = pipe_fds[0];
  ::fcntl(output_fd, F_SETFL, O_NONBLOCK);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDERR_FILENO);
  std::vector<std::string> entries = environment_of(changes);
  std::vector<char*> environment;
  for (std::string& entry : entries) environment.push_back(entry.data());
  environment.push_back(nullptr);
  std::string program = "/proc/self/exe";
  // What the process list shows.
  std::string label = fmt::format("nfold_rank_{}", changes.at("RANK"));
  char* arguments[] = {label.data(), nullptr};
  const int error = ::posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                  arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_fds[1]);
  if (error != 0) {
    pid = -1;
    raise_errno("posix_spawn", error);
  }
}

void ProcessWorld::Rank::read_output(std::chrono::milliseconds patience) {
  pollfd waiting{output_fd, POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(patience.count())) <= 0) return;
  char buffer[4096];
  for (;;) {
    const ssize_t num_bytes = ::read(output_fd, buffer, sizeof(buffer));
    if (num_bytes <= 0) return;
    result.output.append(buffer, static_cast<std::size_t>(num_bytes));
  }
}

bool ProcessWorld::Rank::check_ended() {
  if (has_ended) return true;
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) != pid) return false;
  has_ended = true;
  if (WIFSIGNALED(status)) {
    result.signal = WTERMSIG(status);
  } else {
    result.exit_code = WEXITSTATUS(status);
  }
  read_output(std::chrono::milliseconds(0));
  return true;
}

void ProcessWorld::Rank::wait() {
  while (!check_ended()) {
    if (Clock::now() >= deadline && !result.is_late) {
      result.is_late = true;
      ::kill(pid, SIGKILL);
    }
    read_output(kExitPoll);
  }
}

ProcessBody::ProcessBody(const char* name, std::function<void()> body) {
  if (bodies().empty()) {
    ::testing::AddGlobalTestEnvironment(new RankEnvironment);
  }
  bodies()[name] = std::move(body);
}

ProcessWorld::ProcessWorld(const std::string& body, int num_ranks,
                           ProcessWorldOptions options) {
  const std::string size = std::to_string(num_ranks);
  const std::string port = std::to_string(free_port());
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::map<std::string, std::string> changes{
        {kBodyVariable, body},
        {"RANK", std::to_string(rank)},
        {"LOCAL_RANK", std::to_string(rank)},
        {"WORLD_SIZE", size},
        {"LOCAL_WORLD_SIZE", size},
        {"MASTER_ADDR", "127.0.0.1"},
        {"MASTER_PORT", port},
        {"OMP_NUM_THREADS", "1"}};
    for (const auto& [name, value] : options.environment) {
      changes[name] = value;
    }
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->deadline = Clock::now() + options.limit;
    ranks_.back()->start(changes);
  }
}

ProcessWorld::~ProcessWorld() = default;

void ProcessWorld::wait_for_output(int rank, const std::string& text) {
  Rank& process = *ranks_.at(static_cast<std::size_t>(rank));
  while (process.result.output.find(text) == std::string::npos) {
    const bool has_ended = process.check_ended();
    if (has_ended && process.result.output.find(text) != std::string::npos) {
      return;
    }
    if (has_ended || Clock::now() >= process.deadline) {
      throw std::runtime_error(
          fmt::format("rank {} {} before it wrote \"{}\"; it wrote: {}", rank,
                      has_ended ? "ended" : "exceeded its limit", text,
                      process.result.output));
    }
    process.read_output(kExitPoll);
  }
}

void ProcessWorld::kill(int rank, int signal) {
  Rank& process = *ranks_.at(static_cast<std::size_t>(rank));
  if (!process.check_ended()) ::kill(process.pid, signal);
}

pid_t ProcessWorld::pid(int rank) const {
  return ranks_.at(static_cast<std::size_t>(rank))->pid;
}

std::vector<RankResult> ProcessWorld::wait() {
  std::vector<RankResult> results;
  for (const auto& rank : ranks_) {
    rank->wait();
    results.push_back(rank->result);
  }
  return results;
}

int free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) raise_errno("socket", errno);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  const bool is_bound = ::bind(socket, generic, size) == 0 &&
                        ::getsockname(socket, generic, &size) == 0;
  const int error = errno;
  ::close(socket);
  if (!is_bound) raise_errno("bind", error);
  return ntohs(address.sin_port);
}

}  // namespace nfold
