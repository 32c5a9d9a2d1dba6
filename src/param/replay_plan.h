// File: replay_plan.h
//
// In which order a recorded construction is replayed, what is skipped, and
// when each storage is there. Pure: numbers in, numbers out.
//
// Operators run in the order they were recorded in. Skipped is what has no
// effect on anything wanted: the values of temporaries, and values that are
// overwritten later. Random operators must run all the same, for the draws of
// the others to be theirs.
//
// A storage is handed over (kFinish) right after its last operator. One that
// waits for a later operator may be handed over early (kStore) and asked for
// again (kLoad), so that what waits stays below a bound; the one needed last
// goes first. A value that will be overwritten is dropped, never stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nfold {

// Storages of one operator, by index.
struct OperatorAccess {
  // Whose values must be there before, including those changed in part.
  std::vector<std::size_t> inputs;
  // Whose values it changes or makes. One that is no input is given new
  // values throughout.
  std::vector<std::size_t> outputs;
};

struct ReplayRequest {
  std::vector<bool> must_run;          // for each operator
  std::vector<bool> is_wanted;         // for each storage: its final value
  std::vector<bool> may_store;         // for each storage: kStore and kLoad
  std::vector<std::int64_t> nbytes;    // for each storage
  std::int64_t max_waiting_bytes = 0;  // of storages that may be stored
};

enum class ReplayAction {
  kRun,     // the operator
  kLoad,    // asks for the value stored before
  kStore,   // hands the value over; it will be asked for again
  kDrop,    // frees the memory; the value does not matter
  kFinish,  // hands the final value over
};

struct ReplayStep {
  ReplayAction action = ReplayAction::kRun;
  std::size_t index = 0;  // of the operator (kRun) or the storage

  bool operator==(const ReplayStep&) const = default;
};

// Every wanted storage is finished once, those without operators at the end;
// except where what was stored is already the final value.
std::vector<ReplayStep> plan_replay(
    const std::vector<OperatorAccess>& operators, const ReplayRequest& request);

}  // namespace nfold
