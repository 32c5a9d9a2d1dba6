#include "train/launch/failure_choice.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "nfold/errors.h"

namespace nfold::train {

bool has_failed(const RankEnd& end) {
  return exit_code_of(end.wait_status) != 0;
}

FailureKind kind_of(const RankEnd& end) {
  if (WIFSIGNALED(end.wait_status)) {
    // A program that does not catch the exception about its lost peer aborts,
    // and the launcher itself sends SIGTERM: neither names a culprit.
    const int signal = WTERMSIG(end.wait_status);
    const bool may_be_consequence =
        signal == SIGABRT || signal == SIGTERM || signal == SIGPIPE;
    return may_be_consequence ? FailureKind::kOwn : FailureKind::kCrash;
  }
  if (end.report && end.report->is_lost_peer) return FailureKind::kLostPeer;
  return FailureKind::kOwn;
}

std::size_t choose_failure(const std::vector<RankEnd>& ends) {
  std::optional<std::size_t> chosen;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    if (!has_failed(ends[i])) continue;
    if (!chosen || kind_of(ends[i]) < kind_of(ends[*chosen])) chosen = i;
  }
  TORCH_INTERNAL_ASSERT(chosen, "no rank has failed");
  return *chosen;
}

std::chrono::milliseconds patience_for(FailureKind kind) {
  switch (kind) {
    case FailureKind::kCrash:
      return std::chrono::milliseconds(0);
    case FailureKind::kOwn:
      return std::chrono::milliseconds(200);
    case FailureKind::kLostPeer:
      return std::chrono::milliseconds(1500);
  }
  return std::chrono::milliseconds(0);
}

int exit_code_of(int wait_status) {
  if (WIFSIGNALED(wait_status)) return 128 + WTERMSIG(wait_status);
  return WEXITSTATUS(wait_status);
}

std::string describe_end(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    const char* name = ::sigabbrev_np(signal);
    std::string text =
        fmt::format("was killed by SIG{} ({})", name == nullptr ? "?" : name,
                    ::strsignal(signal));
    if (signal == SIGKILL) {
      text += "; was it stopped by hand, or did the machine run out of memory?";
    }
    return text;
  }
  return fmt::format("ended with exit code {}", WEXITSTATUS(wait_status));
}

}  // namespace nfold::train
