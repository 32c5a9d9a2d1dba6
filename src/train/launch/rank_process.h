// File: rank_process.h
//
// One started rank: its process, the last part of what it printed, and the
// error that it reported.
//
//   RankProcess process({.rank = 1, .command = {"prog"}, .variables = env});
//   while (...) process.read_available();
//
// Rank 0 keeps the terminal: its input and output pass through untouched. The
// others read /dev/null and write into a pipe that read_available() must
// empty, or they stall. The process is killed when the thread that made it
// ends, however it ends.
//
// Not for use by two threads at once. Does not wait for the process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "train/launch/error_report.h"

namespace nfold::train {

struct RankSpec {
  int rank = 0;
  // Program, looked up in PATH, and its arguments.
  std::vector<std::string> command;
  // All variables of the process, as "NAME=value".
  std::vector<std::string> variables;
  // Everything that a rank other than 0 prints is also written here. Empty:
  // nowhere.
  std::string log_file;
};

class RankProcess {
 public:
  // Starts the process. Raises nfold::IoError if that fails. A program that
  // cannot be run is an error that the rank reports.
  explicit RankProcess(const RankSpec& spec);
  RankProcess(RankProcess&& other) noexcept;
  RankProcess& operator=(RankProcess&&) = delete;
  ~RankProcess();

  int rank() const { return rank_; }
  pid_t pid() const { return pid_; }
  // What to poll for input; -1 once the other end is closed.
  int output_fd() const { return output_fd_; }
  int error_fd() const { return error_fd_; }

  // Takes what has arrived, without waiting for more.
  void read_available();
  // The end of what the rank printed: at most kTailBytes, whole lines.
  std::string output_tail() const;
  // Complete once the process has ended and read_available() was called.
  std::optional<ErrorReport> report() const;

  static constexpr std::size_t kTailBytes = 16 * 1024;

 private:
  int rank_;
  pid_t pid_ = -1;
  int output_fd_ = -1;
  int error_fd_ = -1;
  int log_fd_ = -1;
  std::string output_;
  bool is_output_cut_ = false;
  std::string error_;
};

}  // namespace nfold::train
