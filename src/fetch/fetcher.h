// File: fetcher.h
//
// Makes sharded units whole when they are used and shards them again when
// they are not: the executor of fetch_plan.h.
//
//   Fetcher fetcher(all, units, options, dispatch_interceptor());
//   loss = model->forward(batch);      // units come and go
//   { Fetcher::BackwardScope scope(fetcher); loss.backward(); }
//   fetcher.end_step();                // the next step follows a plan
//   fetcher.set_position("step 13");
//
// [Note: A step's accesses]
// The first step has no plan: a unit is gathered when an operator touches it
// and released when the live budget or its reuse distance says so. What was
// touched becomes the trace from which the next step's plan is compiled; it
// is compiled again after any step that went another way. Evaluation (grad
// mode off, outside of backward) follows the plan where it can but leaves no
// trace.
//
// Gathers are collective: all ranks must touch units in the same order. Each
// one carries a tag, made of the unit and the plan, so a rank that goes
// another way is an error on every rank; each names the unit it wanted.
//
// A unit that is in use by an operator is pinned; if it should be released
// meanwhile it is when the last pin goes.
//
// Thread-safe; no lock is held while an operator runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "fetch/access_source.h"
#include "fetch/access_trace.h"
#include "fetch/fetch_plan.h"
#include "nfold/group.h"
#include "param/sharded_unit.h"

namespace nfold {

struct FetcherOptions {
  FetchPlanOptions plan;
  GatherMode gather_mode = GatherMode::kAllGather;
  // One collective for each unit, and none before its time.
  bool is_sequential = false;
  // Warn when a step goes another way than the one before.
  bool logs_changes = false;
};

struct FetchCounts {
  std::int64_t gathers = 0;     // units that were made whole
  std::int64_t prefetched = 0;  // of these, begun before they were needed
  std::int64_t misses = 0;      // of these, needed where the plan had another
  std::int64_t peak_bytes = 0;  // of full storages at once
};

class Fetcher : public AccessHandler {
 public:
  // Resident units are always whole; the others come and go, each by way of
  // its own groups. `all` are the ranks that train the model. `source` outlives
  // the fetcher. Raises c10::ValueError for options out of range; a live budget
  // below the largest unit is raised to it, with a warning.
  Fetcher(Group& all, std::vector<ShardedUnit*> units, FetcherOptions options,
          AccessSource& source);
  ~Fetcher() override;

  void begin_access(UnitRefs units) override;
  void begin_exact_access(UnitRefs units) override;
  void end_access(UnitRefs units) noexcept override;
  void discard(UnitRefs units) override;
  std::string where() const override;
  Group& group() const override { return all_; }

  // For good: the parameters are tensors like others from now on.
  void stop_watching() noexcept;

  // Where training stands, for errors: "step 12, micro step 0".
  void set_position(std::string position);
  // While one lives accesses belong to training even with grad mode off.
  class BackwardScope {
   public:
    explicit BackwardScope(Fetcher& fetcher) : fetcher_(fetcher) {
      fetcher_.mark_backward(true);
    }
    ~BackwardScope() { fetcher_.mark_backward(false); }
    BackwardScope(const BackwardScope&) = delete;
    BackwardScope& operator=(const BackwardScope&) = delete;

   private:
    Fetcher& fetcher_;
  };
  // Raises c10::ValueError, naming what and the parameters, if any is in use.
  void check_idle(const char* operation) const;
  // Everything that is whole is sharded again. Ranks must agree on when.
  void end_step();
  // The same without the end of a step: frees memory between phases.
  void release_all();

  // Raises c10::ValueError if a parameter is no longer what was sharded.
  void verify() const;

  const FetchPlan& plan() const { return plan_; }
  FetchCounts counts() const;
  void reset_peak();

 private:
  struct Entry {
    ShardedUnit* unit = nullptr;
    int num_pins = 0;
    // To be released when the last pin goes.
    bool is_due = false;
    // Where the unit stands in recency_; valid while it is whole.
    std::list<std::size_t>::iterator recency{};
    bool is_listed = false;
    // Elements of all accesses before its last one.
    std::int64_t last_use = 0;
  };

  void mark_backward(bool is_in_backward);
  // Those of `units` that come and go.
  c10::SmallVector<std::size_t, 4> indices_of(UnitRefs units);
  void count_resident(UnitRefs units, int change);
  // The lock is held.
  void begin(UnitRefs units, GatherMode mode);
  // `mode` is for the unit itself, not for what is gathered ahead.
  void access(std::size_t unit, GatherMode mode);
  void follow_plan(std::size_t entry, std::size_t unit, GatherMode mode);
  void make_room(std::int64_t numel);
  void gather(const std::vector<std::size_t>& units, const char* purpose,
              GatherMode mode);
  std::vector<Group*> announce(const std::vector<ShardedUnit*>& units,
                               const char* purpose, GatherMode mode);
  void release(std::size_t unit);
  void touch(std::size_t unit);
  void release_unpinned();
  bool is_whole(std::size_t unit) const;
  // 0 for what is whole.
  std::int64_t numel_to_gather(std::size_t unit) const;

  Group& all_;
  const FetcherOptions options_;
  AccessSource& source_;
  std::vector<ShardedUnit*> units_;

  mutable std::mutex mutex_;    // guards everything below
  std::vector<Entry> entries_;  // of the units that come and go
  std::unordered_map<const ShardedUnit*, std::size_t> index_;
  std::list<std::size_t> recency_;  // whole units, least recent first
  std::int64_t live_numel_ = 0;
  std::int64_t live_bytes_ = 0;
  std::int64_t accessed_numel_ = 0;
  TraceRecorder recorder_;
  FetchPlan plan_;
  TraceCursor cursor_{plan_.trace};
  bool is_in_backward_ = false;
  std::string position_ = "before the first step";
  FetchCounts counts_;
  // The unit of the last access: most calls repeat it.
  std::size_t last_ = TraceCursor::kLost;
  // What indices_of found last: most operators repeat it too.
  const ShardedUnit* recent_unit_ = nullptr;
  std::size_t recent_index_ = 0;
  // Resident units in gather scopes: nothing to fetch, but not to be updated.
  std::unordered_map<const ShardedUnit*, int> resident_pins_;
};

}  // namespace nfold
