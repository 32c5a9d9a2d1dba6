// File: command_for_tests.h
//
// Runs a command as a user would and collects what it prints.
//
//   Outcome outcome = run({"sh", "-c", "echo hello; exit 3"});
//   EXPECT_EQ(outcome.exit_code, 3);
//
// For tests only. Not for use by two threads at once.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "train/launch/failure_choice.h"

namespace nfold::train {

using Arguments = std::vector<std::string>;
using Clock = std::chrono::steady_clock;

// Nothing here takes this long; a test that hangs ends.
inline constexpr std::chrono::seconds kPatience(90);
struct Outcome {
  int exit_code = -1;
  std::string output;
  std::string errors;
  std::chrono::milliseconds time{0};
};

// Without the variables of a launcher that may have started the tests.
inline void forget_launchers() {
  for (const char* name : {"RANK", "WORLD_SIZE", "NFOLD_LAUNCH_ID",
                           "NFOLD_ERROR_FD", "MASTER_ADDR", "MASTER_PORT"}) {
    ::unsetenv(name);
  }
}

// A command on its way, with its output in pipes.
class Command {
 public:
  explicit Command(Arguments arguments) : begin_(Clock::now()) {
    EXPECT_EQ(::pipe2(output_, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(errors_, O_CLOEXEC), 0);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    forget_launchers();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(output_[1], STDOUT_FILENO);
      ::dup2(errors_[1], STDERR_FILENO);
      ::execvp(pointers[0], pointers.data());
      ::_exit(126);
    }
    ::close(output_[1]);
    ::close(errors_[1]);
  }

  pid_t pid() const { return pid_; }

  // Reads until `text` stands in the output, for a program that says when it
  // is ready.
  void wait_for_output(const std::string& text) {
    read_while([&] { return outcome_.output.find(text) == std::string::npos; });
  }

  Outcome finish() {
    // Both pipes close when the last process that holds them has ended.
    read_while([] { return true; });
    int status = 0;
    ::waitpid(pid_, &status, 0);
    outcome_.exit_code = exit_code_of(status);
    outcome_.time = std::chrono::duration_cast<std::chrono::milliseconds>(
        Clock::now() - begin_);
    return outcome_;
  }

 private:
  void read_while(const std::function<bool()>& is_wanted) {
    while ((output_[0] >= 0 || errors_[0] >= 0) && is_wanted()) {
      if (Clock::now() - begin_ > kPatience) {
        ADD_FAILURE() << "no end of: " << outcome_.output << outcome_.errors;
        ::kill(pid_, SIGKILL);
        return;
      }
      pollfd polled[2] = {{output_[0], POLLIN, 0}, {errors_[0], POLLIN, 0}};
      ::poll(polled, 2, 1000);
      if (polled[0].revents != 0) take(output_[0], outcome_.output);
      if (polled[1].revents != 0) take(errors_[0], outcome_.errors);
    }
  }

  static void take(int& fd, std::string& text) {
    char buffer[4096];
    const ssize_t num_read = ::read(fd, buffer, sizeof(buffer));
    if (num_read > 0) {
      text.append(buffer, static_cast<std::size_t>(num_read));
    } else {
      ::close(fd);
      fd = -1;
    }
  }

  Clock::time_point begin_;
  pid_t pid_ = -1;
  int output_[2] = {-1, -1};
  int errors_[2] = {-1, -1};
  Outcome outcome_;
};

inline Outcome run(Arguments arguments) {
  return Command(std::move(arguments)).finish();
}

// A folder of its own for each test.
class LaunchFolder {
 public:
  LaunchFolder() {
    std::string name =
        (std::filesystem::temp_directory_path() / "launch_XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~LaunchFolder() { std::filesystem::remove_all(path_); }
  std::filesystem::path path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace nfold::train
