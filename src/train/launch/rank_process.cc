#include "train/launch/rank_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

constexpr int kCannotRun = 127;
constexpr std::size_t kMaxErrorBytes = 64 * 1024;

struct Pipe {
  int read_end = -1;
  int write_end = -1;
};

Pipe make_pipe() {
  int ends[2];
  NFOLD_CHECK_IO(::pipe2(ends, O_CLOEXEC) == 0,
                 "cannot make a pipe for a rank: ", std::strerror(errno));
  ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  return {ends[0], ends[1]};
}

void close_fd(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Calls `take` with what can be read now; closes `fd` at its end.
template <typename Take>
void drain(int& fd, Take take) {
  char buffer[8192];
  while (fd >= 0) {
    const ssize_t count = ::read(fd, buffer, sizeof(buffer));
    if (count > 0) {
      take(std::string_view(buffer, static_cast<std::size_t>(count)));
    } else if (count == 0) {
      close_fd(fd);
    } else if (errno != EINTR) {
      return;  // Nothing more for now.
    }
  }
}

// What the child does between fork and exec: system calls only, since another
// thread may have held any lock at the moment of the fork.
struct ChildPlan {
  pid_t parent = 0;
  char** arguments = nullptr;
  char** variables = nullptr;
  int null_fd = -1;
  int output_fd = -1;  // -1: keep the terminal.
  int error_fd = -1;
  const char* cannot_run = nullptr;
};

[[noreturn]] void run_child(const ChildPlan& plan) {
  // No orphans, even if the launcher is killed. The launcher may have died
  // before this call, which then would never fire.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(kCannotRun);
  // The launcher blocks the signals that it reads; a rank must not inherit it.
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.output_fd >= 0) {
    ::dup2(plan.null_fd, STDIN_FILENO);
    ::dup2(plan.output_fd, STDOUT_FILENO);
    ::dup2(plan.output_fd, STDERR_FILENO);
  }
  ::fcntl(plan.error_fd, F_SETFD, 0);
  ::execvpe(plan.arguments[0], plan.arguments, plan.variables);
  const char* reason = ::strerrordesc_np(errno);
  if (reason == nullptr) reason = "unknown error";
  // Nothing can be done about a failing write here.
  if (::write(plan.error_fd, plan.cannot_run, std::strlen(plan.cannot_run)) >=
      0) {
    [[maybe_unused]] const ssize_t count =
        ::write(plan.error_fd, reason, std::strlen(reason));
  }
  ::_exit(kCannotRun);
}

}  // namespace

RankProcess::RankProcess(const RankSpec& spec) : rank_(spec.rank) {
  TORCH_CHECK_VALUE(!spec.command.empty(), "no program to run");
  const Pipe error = make_pipe();
  Pipe output;
  if (spec.rank != 0) output = make_pipe();
  if (spec.rank != 0 && !spec.log_file.empty()) {
    log_fd_ = ::open(spec.log_file.c_str(),
                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    NFOLD_CHECK_IO(log_fd_ >= 0, "cannot write the log of rank ", spec.rank,
                   ", ", spec.log_file, ": ", std::strerror(errno));
  }
  int null_fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  std::vector<std::string> command = spec.command;
  std::vector<std::string> variables = spec.variables;
  variables.push_back(fmt::format("{}={}", kErrorFdVariable, error.write_end));
  const std::vector<char*> arguments = pointers_to(command);
  const std::vector<char*> environment = pointers_to(variables);
  const std::string cannot_run = encode_error_report(
      {false, fmt::format("cannot run {}: ", spec.command.front())});
  ChildPlan plan;
  plan.parent = ::getpid();
  plan.arguments = const_cast<char**>(arguments.data());
  plan.variables = const_cast<char**>(environment.data());
  plan.null_fd = null_fd;
  plan.output_fd = output.write_end;
  plan.error_fd = error.write_end;
  plan.cannot_run = cannot_run.c_str();
  pid_ = ::fork();
  if (pid_ == 0) run_child(plan);
  const int fork_error = errno;
  ::close(error.write_end);
  if (output.write_end >= 0) ::close(output.write_end);
  close_fd(null_fd);
  output_fd_ = output.read_end;
  error_fd_ = error.read_end;
  NFOLD_CHECK_IO(pid_ > 0, "cannot start rank ", spec.rank, ": ",
                 std::strerror(fork_error));
}

RankProcess::RankProcess(RankProcess&& other) noexcept
    : rank_(other.rank_),
      pid_(std::exchange(other.pid_, -1)),
      output_fd_(std::exchange(other.output_fd_, -1)),
      error_fd_(std::exchange(other.error_fd_, -1)),
      log_fd_(std::exchange(other.log_fd_, -1)),
      output_(std::move(other.output_)),
      is_output_cut_(other.is_output_cut_),
      error_(std::move(other.error_)) {}

RankProcess::~RankProcess() {
  close_fd(output_fd_);
  close_fd(error_fd_);
  close_fd(log_fd_);
}

void RankProcess::read_available() {
  drain(output_fd_, [this](std::string_view bytes) {
    if (log_fd_ >= 0 && ::write(log_fd_, bytes.data(), bytes.size()) !=
                            static_cast<ssize_t>(bytes.size())) {
      // A full disk must not stop the rank; the log ends here.
      close_fd(log_fd_);
    }
    output_ += bytes;
    // Cut rarely, so that the cost per byte stays constant.
    if (output_.size() > 2 * kTailBytes) {
      output_.erase(0, output_.size() - kTailBytes);
      is_output_cut_ = true;
    }
  });
  drain(error_fd_, [this](std::string_view bytes) {
    error_ += bytes.substr(0, kMaxErrorBytes - error_.size());
  });
}

std::string RankProcess::output_tail() const {
  if (!is_output_cut_ && output_.size() <= kTailBytes) return output_;
  std::string tail = output_.substr(
      output_.size() > kTailBytes ? output_.size() - kTailBytes : 0);
  // The first line is probably cut in the middle.
  const std::size_t end_of_line = tail.find('\n');
  if (end_of_line + 1 < tail.size()) tail.erase(0, end_of_line + 1);
  return "...\n" + tail;
}

std::optional<ErrorReport> RankProcess::report() const {
  return decode_error_report(error_);
}

}  // namespace nfold::train
