// File: access_trace.h
//
// The order in which a step touches its sharded units.
//
// Units are numbers here, so that what follows from the order (fetch_plan.h)
// is plain arithmetic. Consecutive accesses to one unit are one entry: the
// dozen operators of a block are one use of its unit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace nfold {

using AccessTrace = std::vector<std::size_t>;

// Records one step at a time.
class TraceRecorder {
 public:
  void record(std::size_t unit) {
    for (const auto each : unsure_) add(each);
    unsure_.clear();
    is_in_pass_ = true;
    add(unit);
  }
  // An access with grad mode off: of an evaluation, or of a custom autograd
  // function inside of a forward pass. It counts if the pass has begun before
  // and goes on after it.
  void record_unsure(std::size_t unit) {
    if (is_in_pass_) unsure_.push_back(unit);
  }
  // Backward has ended.
  void end_pass() {
    unsure_.clear();
    is_in_pass_ = false;
  }
  // The next access is an entry of its own even if it repeats the last unit.
  void split() { is_new_entry_ = true; }
  // What the step touched; recording starts afresh.
  AccessTrace take() {
    is_new_entry_ = true;
    end_pass();
    return std::exchange(trace_, {});
  }

 private:
  void add(std::size_t unit) {
    if (is_new_entry_ || trace_.back() != unit) trace_.push_back(unit);
    is_new_entry_ = false;
  }

  AccessTrace trace_;
  AccessTrace unsure_;
  bool is_in_pass_ = false;
  bool is_new_entry_ = true;
};

// Follows a trace, entry by entry.
//
// A deviation is no error: the cursor goes on at the next entry that holds
// the unit, looking around the end of the trace, and is lost where there is
// none. So an evaluation between two steps, a branch not taken or a second
// forward cost a few unplanned fetches and nothing else.
class TraceCursor {
 public:
  static constexpr std::size_t kLost = static_cast<std::size_t>(-1);

  // `trace` must outlive the cursor.
  explicit TraceCursor(const AccessTrace& trace) : trace_(&trace) {}

  // The entry of this access, or kLost. The entry it is at already comes last
  // of those that are tried.
  std::size_t advance(std::size_t unit);
  std::size_t position() const { return position_; }
  void rewind() { position_ = kLost; }

 private:
  const AccessTrace* trace_;
  std::size_t position_ = kLost;  // the entry last matched
};

}  // namespace nfold
