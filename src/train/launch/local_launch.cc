#include "train/launch/local_launch.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "nfold/cores.h"
#include "nfold/errors.h"
#include "train/launch/failure_choice.h"
#include "train/launch/port_reservation.h"
#include "train/launch/rank_process.h"

namespace nfold::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kLaunchIdVariable[] = "NFOLD_LAUNCH_ID";
// From SIGTERM to SIGKILL.
constexpr std::chrono::seconds kTerminationTime(5);

// One job inside of another would use the ranks of the outer one.
void check_not_inside_a_launcher() {
  const auto number = [](const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? 0 : std::atoi(text);
  };
  const char* rank = std::getenv("RANK");
  TORCH_CHECK_VALUE(
      rank == nullptr || *rank == '\0', "RANK=", rank == nullptr ? "" : rank,
      " is set: a launcher (torchrun or nfold launch) has already started this "
      "process as one of its ranks. Start ranks in one place only: leave out "
      "--nproc here, or unset RANK.");
  for (const char* name :
       {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    TORCH_CHECK_VALUE(
        number(name) <= 1, name, "=", number(name),
        " is set: mpirun or srun has already started this process as one of "
        "its ranks. Start ranks in one place only: leave out --nproc here, or "
        "let mpirun or srun start one process.");
  }
}

std::vector<std::string> variables_of_rank(
    const std::map<std::string, std::string>& added) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view line = *entry;
    const std::string name(line.substr(0, line.find('=')));
    // What is left of another launcher would contradict ours.
    if (added.count(name) > 0 || name.rfind("TORCHELASTIC_", 0) == 0) continue;
    variables.emplace_back(line);
  }
  for (const auto& [name, value] : added) {
    variables.push_back(fmt::format("{}={}", name, value));
  }
  return variables;
}

RankSpec spec_of(const LaunchOptions& options, const JobShape& shape,
                 int local_rank, const std::string& launch_id) {
  auto added = variables_of(shape, local_rank);
  added[kLaunchIdVariable] = launch_id;
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    added["OMP_NUM_THREADS"] =
        std::to_string(std::max(1, usable_cores() / shape.ranks_per_host));
  }
  RankSpec spec;
  spec.rank = shape.rank_of(local_rank);
  spec.command = options.command;
  spec.variables = variables_of_rank(added);
  if (!options.log_dir.empty()) {
    spec.log_file = fmt::format("{}/rank_{}.log", options.log_dir, spec.rank);
  }
  return spec;
}

// Marks the ranks as a launcher's, and keeps those of one job apart from
// those of an earlier one at the same port. Launchers of several hosts cannot
// agree on a number beforehand; there the claims of the rendezvous do it.
std::string launch_id_of(const JobShape& shape) {
  if (shape.num_hosts > 1) return "several-hosts";
  return fmt::format("{}-{:08x}", ::getpid(), std::random_device()());
}

// The port to hold until the job ends, where it is this host that serves.
std::optional<PortReservation> reserve_port(JobShape& shape) {
  if (shape.num_hosts > 1 && shape.master_port == 0) {
    shape.master_port = kDefaultMasterPort;
  }
  if (!shape.is_first_host()) return std::nullopt;
  auto port = shape.master_port == 0
                  ? PortReservation::any()
                  : PortReservation::exactly(shape.master_port);
  shape.master_port = port.number();
  return port;
}

// Reads the signals that matter as data, in order, with who sent them.
class SignalReader {
 public:
  SignalReader() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) {
      sigaddset(&signals, signal);
    }
    ::pthread_sigmask(SIG_BLOCK, &signals, &previous_);
    fd_ = ::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    NFOLD_CHECK_IO(fd_ >= 0, "cannot read signals: ", std::strerror(errno));
  }
  ~SignalReader() {
    ::close(fd_);
    ::pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
  }
  SignalReader(const SignalReader&) = delete;
  SignalReader& operator=(const SignalReader&) = delete;

  int fd() const { return fd_; }

  std::optional<signalfd_siginfo> next() {
    signalfd_siginfo info;
    if (::read(fd_, &info, sizeof(info)) != sizeof(info)) return std::nullopt;
    return info;
  }

 private:
  int fd_ = -1;
  sigset_t previous_;
};

// The ranks of one launch, from their start until all have ended.
class RankGroup {
 public:
  explicit RankGroup(const LaunchOptions& options) : options_(options) {}
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  void start(const JobShape& shape);
  // Until the last rank has ended; returns the exit code.
  int run();

 private:
  bool is_running(const RankProcess& process) const;
  bool has_any_failed() const;
  void send(int signal);
  void wait_for_event();
  void take_signals();
  void reap();
  // Tells ranks to end, and then makes them, once one has failed.
  void enforce_end();
  std::optional<Clock::time_point> next_deadline() const;
  void show_failure(const RankEnd& end);

  const LaunchOptions& options_;
  SignalReader signals_;
  std::vector<RankProcess> processes_;
  // In the order in which they were seen to end.
  std::vector<RankEnd> ends_;
  // The first failure was seen; the others are told to end at this time.
  std::optional<Clock::time_point> terminate_at_;
  std::optional<Clock::time_point> kill_at_;
  // The failure to show. Fixed when the other ranks are told to end: what
  // becomes of them then is the launcher's doing.
  std::optional<RankEnd> cause_;
  bool is_killed_ = false;
  // The signal that somebody sent to end the job.
  std::optional<int> interruption_;
};

RankGroup::~RankGroup() {
  // Only an exception, such as a rank that could not be started, leaves any.
  send(SIGKILL);
  for (const RankProcess& process : processes_) {
    if (is_running(process)) ::waitpid(process.pid(), nullptr, 0);
  }
}

void RankGroup::start(const JobShape& shape) {
  const std::string launch_id = launch_id_of(shape);
  for (int i = 0; i < shape.ranks_per_host; ++i) {
    processes_.emplace_back(spec_of(options_, shape, i, launch_id));
  }
}

int RankGroup::run() {
  while (ends_.size() < processes_.size()) {
    wait_for_event();
    take_signals();
    reap();
    enforce_end();
  }
  if (!has_any_failed()) return 0;
  const RankEnd& end = cause_ ? *cause_ : ends_[choose_failure(ends_)];
  show_failure(end);
  return exit_code_of(end.wait_status);
}

bool RankGroup::is_running(const RankProcess& process) const {
  return std::none_of(ends_.begin(), ends_.end(), [&](const RankEnd& end) {
    return end.rank == process.rank();
  });
}

bool RankGroup::has_any_failed() const {
  return std::any_of(ends_.begin(), ends_.end(), has_failed);
}

void RankGroup::send(int signal) {
  for (const RankProcess& process : processes_) {
    if (is_running(process)) ::kill(process.pid(), signal);
  }
}

void RankGroup::wait_for_event() {
  std::vector<pollfd> polled{{signals_.fd(), POLLIN, 0}};
  for (const RankProcess& process : processes_) {
    for (int fd : {process.output_fd(), process.error_fd()}) {
      if (fd >= 0) polled.push_back({fd, POLLIN, 0});
    }
  }
  int timeout_ms = -1;
  if (const auto deadline = next_deadline()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now());
    timeout_ms = static_cast<int>(std::max<std::int64_t>(0, left.count()));
  }
  ::poll(polled.data(), polled.size(), timeout_ms);
  for (RankProcess& process : processes_) process.read_available();
}

void RankGroup::take_signals() {
  while (const auto info = signals_.next()) {
    const int signal = static_cast<int>(info->ssi_signo);
    if (signal == SIGCHLD) continue;
    // After a failure the user may lose patience; the failure is the news.
    if (!has_any_failed()) interruption_ = signal;
    // The terminal sends Ctrl-C to every process in the foreground, so the
    // ranks have it already.
    if (info->ssi_code != SI_KERNEL) send(signal);
  }
}

void RankGroup::reap() {
  for (RankProcess& process : processes_) {
    if (!is_running(process)) continue;
    int status = 0;
    if (::waitpid(process.pid(), &status, WNOHANG) != process.pid()) continue;
    process.read_available();
    ends_.push_back({process.rank(), status, process.report()});
  }
}

void RankGroup::enforce_end() {
  if (!has_any_failed()) return;
  const auto now = Clock::now();
  if (!kill_at_) {
    // Each new end may reveal the cause and so shorten the wait.
    const auto patience = patience_for(kind_of(ends_[choose_failure(ends_)]));
    terminate_at_ =
        std::min(terminate_at_.value_or(now + patience), now + patience);
    if (now < *terminate_at_) return;
    cause_ = ends_[choose_failure(ends_)];
    send(SIGTERM);
    // A stopped process does not see SIGTERM before it continues.
    send(SIGCONT);
    kill_at_ = now + kTerminationTime;
  }
  if (!is_killed_ && now >= *kill_at_) {
    send(SIGKILL);
    is_killed_ = true;
  }
}

std::optional<Clock::time_point> RankGroup::next_deadline() const {
  if (is_killed_) return std::nullopt;
  return kill_at_ ? kill_at_ : terminate_at_;
}

void RankGroup::show_failure(const RankEnd& end) {
  const std::string who = fmt::format("[rank {}] ", end.rank);
  if (interruption_) {
    fmt::print(stderr, "nfold: the job was ended by SIG{}\n",
               ::sigabbrev_np(*interruption_));
    return;
  }
  if (end.report) {
    const std::string& text = end.report->text;
    const bool names_rank = text.rfind(who, 0) == 0;
    fmt::print(stderr, "nfold: error: {}{}\n", names_rank ? "" : who, text);
    return;
  }
  const auto process = std::find_if(
      processes_.begin(), processes_.end(),
      [&](const RankProcess& other) { return other.rank() == end.rank; });
  std::string tail = process->output_tail();
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  fmt::print(stderr, "nfold: error: {}{}{}\n", who,
             describe_end(end.wait_status),
             tail.empty() ? "" : "; the last that it printed:");
  for (std::size_t begin = 0; begin < tail.size();) {
    const std::size_t end_of_line =
        std::min(tail.find('\n', begin), tail.size());
    fmt::print(stderr, "{}{}\n", who, tail.substr(begin, end_of_line - begin));
    begin = end_of_line + 1;
  }
}

// What ranks that failed have left running (a shell script's program, a data
// loader) is ours since the ranks ended.
void kill_descendants() {
  for (;;) {
    std::ifstream list(fmt::format("/proc/self/task/{}/children", ::getpid()));
    std::vector<pid_t> children;
    for (pid_t child = 0; list >> child;) children.push_back(child);
    if (children.empty()) return;
    for (pid_t child : children) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
  }
}

}  // namespace

int launch_local_ranks(const LaunchOptions& options) {
  JobShape shape = options.shape;
  check(shape);
  TORCH_CHECK_VALUE(!options.command.empty(), "no program to launch");
  check_not_inside_a_launcher();
  if (!options.log_dir.empty()) {
    NFOLD_CHECK_IO(
        ::mkdir(options.log_dir.c_str(), 0777) == 0 || errno == EEXIST,
        "cannot make the folder ", options.log_dir, ": ", std::strerror(errno));
  }
  const auto port = reserve_port(shape);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  RankGroup ranks(options);
  ranks.start(shape);
  const int exit_code = ranks.run();
  if (exit_code != 0) kill_descendants();
  return exit_code;
}

int relaunch_this_command(int num_ranks) {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  LaunchOptions options;
  options.shape.ranks_per_host = num_ranks;
  for (std::string argument; std::getline(file, argument, '\0');) {
    options.command.push_back(argument);
  }
  NFOLD_CHECK_IO(!options.command.empty(),
                 "cannot read this process's command line from /proc");
  // argv[0] may be relative to a folder in PATH; the link is exact.
  char path[4096];
  const ssize_t path_bytes = ::readlink("/proc/self/exe", path, sizeof(path));
  NFOLD_CHECK_IO(path_bytes > 0,
                 "cannot read /proc/self/exe: ", std::strerror(errno));
  options.command.front().assign(path, static_cast<std::size_t>(path_bytes));
  return launch_local_ranks(options);
}

bool is_launched_rank() {
  const char* id = std::getenv(kLaunchIdVariable);
  return id != nullptr && *id != '\0';
}

}  // namespace nfold::train
