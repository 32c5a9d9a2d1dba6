// File: tape_replay.h
//
// Runs the operators of a construction tape on real memory.
//
//   nfold::replay(std::move(tape));           // the module is real now
//   nfold::replay(std::move(tape), &sink);    // parameter by parameter
//
// The operators, their order and the random numbers they draw are those of the
// eager construction, so the values are too, bit by bit. Temporaries live from
// their first to their last operator only, and values that are overwritten
// before anybody sees them are not computed at all, unless random numbers are
// drawn for them.
//
// What is held at a time: the storages that have become real in place, what
// the sink keeps, the storages of the operator that runs and of temporaries
// that wait for one, and at most `max_waiting_bytes` of storages for the sink
// that a later operator changes again.
//
// Callable from any thread; replays of several threads only take turns while
// they draw random numbers. Nothing here knows of ranks or shards.
#pragma once

#include <c10/core/Storage.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "param/construction_tape.h"

namespace nfold {

// Takes the values of some storages to another place.
class ReplaySink {
 public:
  enum class Destination {
    kInPlace,  // becomes real where it is
    kSink,     // store() is called
    kNowhere,  // is not computed and stays deferred
  };

  virtual ~ReplaySink() = default;

  // Asked once for each storage in use, before anything runs.
  virtual Destination destination_of(const c10::Storage& deferred) = 0;
  // The value: the same bytes that the deferred storage stands for, so
  // tensor_on(value, tensor) is the real twin of a tensor on it. Called again
  // if an operator changes it later; the last value counts. Same calls in the
  // same order for the same tape.
  virtual void store(const c10::Storage& deferred, c10::Storage value) = 0;
  // Gives back what was stored last.
  virtual c10::Storage load(const c10::Storage& deferred) = 0;
};

struct ReplayOptions {
  std::int64_t max_waiting_bytes = std::int64_t{64} << 20;
};

// Replays a finished tape. Afterwards every storage of it that is in use is
// where the sink wants it, all real without a sink, and the random generators
// are where the eager construction would have left them. Tensors from outside
// that the constructor has read must not have changed since.
//
// Raises c10::ValueError without a tape, and what an operator or the sink
// raises; then the storages done so far stay real, and the generators as they
// were.
void replay(std::unique_ptr<ConstructionTape> tape, ReplaySink* sink = nullptr,
            const ReplayOptions& options = {});

// What the storages would hold by now, computed on the side: for a constructor
// that reads a value. Nothing of the tape changes, except that the random
// states of all draws so far are known afterwards.
std::vector<c10::Storage> current_values(ConstructionTape& tape,
                                         const std::vector<StorageId>& ids);

}  // namespace nfold
