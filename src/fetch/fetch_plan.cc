#include "fetch/fetch_plan.h"

#include <algorithm>
#include <limits>
#include <set>

#include "base/hash.h"

namespace nfold {
namespace {

constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();

// Walks the trace as the executor will, keeping count of what is live.
class Planner {
 public:
  Planner(const AccessTrace& trace, const std::vector<std::int64_t>& numels,
          const FetchPlanOptions& options)
      : trace_(trace), numels_(numels), options_(options) {
    elements_before_.push_back(0);
    uses_.resize(numels_.size());
    for (std::size_t entry = 0; entry < trace_.size(); ++entry) {
      const auto unit = trace_[entry];
      elements_before_.push_back(elements_before_.back() + numels_[unit]);
      previous_use_.push_back(uses_[unit].empty() ? kNever
                                                  : uses_[unit].back());
      uses_[unit].push_back(entry);
    }
  }

  std::vector<FetchStep> run() {
    std::vector<FetchStep> steps(trace_.size());
    for (std::size_t entry = 0; entry < trace_.size(); ++entry) {
      if (entry > 0) release_after(entry - 1, steps[entry]);
      make_room_for(trace_[entry], entry, entry, steps[entry]);
      add(trace_[entry]);
      prefetch(entry, steps[entry]);
    }
    return steps;
  }

 private:
  std::size_t next_use(std::size_t unit, std::size_t after) const {
    const auto& uses = uses_[unit];
    const auto next = std::upper_bound(uses.begin(), uses.end(), after);
    return next == uses.end() ? kNever : *next;
  }

  void add(std::size_t unit) {
    if (live_.insert(unit).second) live_numel_ += numels_[unit];
  }

  void drop(std::size_t unit, FetchStep& step) {
    live_.erase(unit);
    used_.erase(unit);
    live_numel_ -= numels_[unit];
    step.release.push_back(unit);
  }

  // The unit of an entry that is over, unless it is wanted again soon.
  void release_after(std::size_t entry, FetchStep& step) {
    const auto unit = trace_[entry];
    const auto next = next_use(unit, entry);
    if (next == kNever || !is_kept_between(entry, next)) drop(unit, step);
  }

  // Two uses of one unit, none in between.
  bool is_kept_between(std::size_t entry, std::size_t next) const {
    const auto distance = elements_before_[next] - elements_before_[entry + 1];
    return options_.max_reuse_numel > 0 && distance <= options_.max_reuse_numel;
  }

  // Releases what is used last (Belady's rule, optimal for a known future)
  // until `unit`, used at `use`, fits. False if it cannot without touching
  // what is used before.
  bool make_room_for(std::size_t unit, std::size_t entry, std::size_t use,
                     FetchStep& step) {
    if (live_.count(unit)) return true;
    std::vector<std::size_t> victims;
    auto numel = live_numel_ + numels_[unit];
    auto candidates = std::vector<std::pair<std::size_t, std::size_t>>();
    for (const auto other : live_) {
      if (other == trace_[entry]) continue;
      candidates.emplace_back(next_use(other, entry), other);
    }
    std::sort(candidates.rbegin(), candidates.rend());
    for (const auto& [next, other] : candidates) {
      if (numel <= options_.max_live_numel) break;
      if (use != entry && next <= use) return false;
      victims.push_back(other);
      numel -= numels_[other];
    }
    if (use != entry && numel > options_.max_live_numel) return false;
    for (const auto victim : victims) drop(victim, step);
    return true;
  }

  // In the order of use, and never past a unit that has to wait: what comes
  // after it would take its place and have to go again.
  void prefetch(std::size_t entry, FetchStep& step) {
    // What was begun earlier and not used yet is on its way still.
    std::int64_t ahead = 0;
    for (auto use = entry + 1;
         options_.prefetch_numel > 0 && use < trace_.size(); ++use) {
      const auto unit = trace_[use];
      const auto previous = previous_use_[use];
      if (previous != kNever && previous >= entry) {
        if (!is_kept_between(previous, use)) break;
        continue;
      }
      if (used_.count(unit)) continue;
      if (ahead + numels_[unit] > options_.prefetch_numel) break;
      ahead += numels_[unit];
      if (live_.count(unit)) continue;
      if (is_released_by(step, unit)) break;
      if (!make_room_for(unit, entry, use, step)) break;
      add(unit);
      step.prefetch.push_back(unit);
    }
    used_.insert(trace_[entry]);
  }

  static bool is_released_by(const FetchStep& step, std::size_t unit) {
    return std::count(step.release.begin(), step.release.end(), unit) > 0;
  }

  const AccessTrace& trace_;
  const std::vector<std::int64_t>& numels_;
  const FetchPlanOptions& options_;
  // Elements of the entries before each one: distances by subtraction.
  std::vector<std::int64_t> elements_before_;
  std::vector<std::vector<std::size_t>> uses_;  // entries of each unit
  std::vector<std::size_t> previous_use_;       // of each entry's unit
  std::set<std::size_t> live_;
  std::set<std::size_t> used_;  // those of live_ that were not only prefetched
  std::int64_t live_numel_ = 0;
};

}  // namespace

FetchPlan compile_fetch_plan(AccessTrace trace,
                             const std::vector<std::int64_t>& numels,
                             const FetchPlanOptions& options) {
  FetchPlan plan;
  plan.steps = Planner(trace, numels, options).run();
  plan.trace = std::move(trace);
  Hasher hasher;
  hasher.add_number(options.max_live_numel);
  hasher.add_number(options.prefetch_numel);
  hasher.add_number(options.max_reuse_numel);
  for (const auto unit : plan.trace) {
    hasher.add_number(static_cast<std::int64_t>(unit));
  }
  plan.hash = hasher.digest();
  return plan;
}

}  // namespace nfold
