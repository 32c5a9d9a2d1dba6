// File: failure_choice.h
//
// Which rank's failure the user should see. When one rank dies the others
// fail too, because their peer is gone; the launcher learns of all of them
// within moments and not always in the order of cause and effect.
//
// Pure functions. Callable from any thread.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "train/launch/error_report.h"

namespace nfold::train {

// How a rank ended.
struct RankEnd {
  int rank = 0;
  // As waitpid gives it.
  int wait_status = 0;
  std::optional<ErrorReport> report;
};

enum class FailureKind {
  // Killed by a signal that no lost peer causes: killed from outside, or a
  // memory error.
  kCrash,
  // An error of its own, an exit code, or an abort.
  kOwn,
  // It reported that it lost a peer.
  kLostPeer,
};

bool has_failed(const RankEnd& end);
// `end` must have failed.
FailureKind kind_of(const RankEnd& end);

// The index of the failure to show: the likeliest cause, and among equals the
// one that was seen first. `ends` is in the order in which the ranks were
// seen to end and holds at least one failure.
std::size_t choose_failure(const std::vector<RankEnd>& ends);

// How long to wait for a likelier cause than what is known, before the other
// ranks are told to end: a rank that lost its peer may report that while the
// peer still unwinds.
std::chrono::milliseconds patience_for(FailureKind kind);

// The code with which a shell would report this end: the exit code, or 128 +
// signal.
int exit_code_of(int wait_status);

// "ended with exit code 3", "was killed by SIGKILL (Killed)".
std::string describe_end(int wait_status);

}  // namespace nfold::train
