#include "fetch/fetcher.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/hash.h"
#include "base/log.h"
#include "base/profile.h"
#include "comm/group_impl.h"

namespace nfold {
namespace {

FetcherOptions checked(FetcherOptions options,
                       const std::vector<ShardedUnit*>& units) {
  auto& plan = options.plan;
  TORCH_CHECK_VALUE(
      plan.max_live_numel >= 0 && plan.prefetch_numel >= 0 &&
          plan.max_reuse_numel >= 0,
      "stage3_max_live_parameters, stage3_prefetch_bucket_size and "
      "stage3_max_reuse_distance must not be negative but are ",
      plan.max_live_numel, ", ", plan.prefetch_numel, " and ",
      plan.max_reuse_numel);
  if (options.is_sequential) plan.prefetch_numel = 0;
  const ShardedUnit* largest = nullptr;
  for (const auto* unit : units) {
    if (unit->options().is_resident) continue;
    if (!largest || unit->layout().numel() > largest->layout().numel()) {
      largest = unit;
    }
  }
  if (largest && largest->layout().numel() > plan.max_live_numel) {
    const auto needed = largest->layout().numel();
    log_warning(
        "stage3_max_live_parameters is {}, but {} alone has {} elements and "
        "must be whole to be used; the limit is now {}",
        plan.max_live_numel, largest->name(), needed, needed);
    plan.max_live_numel = needed;
  }
  return options;
}

}  // namespace

Fetcher::Fetcher(Group& all, std::vector<ShardedUnit*> units,
                 FetcherOptions options, AccessSource& source)
    : all_(all), options_(checked(options, units)), source_(source) {
  units_ = std::move(units);
  for (auto* unit : units_) {
    source_.watch(*unit, *this);
    if (unit->options().is_resident) continue;
    index_.emplace(unit, entries_.size());
    entries_.push_back({.unit = unit});
  }
}

Fetcher::~Fetcher() { stop_watching(); }

void Fetcher::stop_watching() noexcept {
  for (auto* unit : units_) source_.unwatch(*unit);
  units_.clear();
}

void Fetcher::begin_access(UnitRefs units) {
  const std::lock_guard lock(mutex_);
  begin(units, options_.gather_mode);
}

void Fetcher::begin_exact_access(UnitRefs units) {
  const std::lock_guard lock(mutex_);
  for (const auto index : indices_of(units)) {
    const auto& entry = entries_[index];
    if (!is_whole(index) || entry.unit->is_exact()) continue;
    TORCH_CHECK_VALUE(entry.num_pins == 0, "[rank ", all_.global_rank(), "] ",
                      position_, ": exact values of ", entry.unit->name(),
                      " were asked for inside of an operator that uses it as "
                      "it came, quantized; open nfold::GatheredParameters "
                      "outside of the operator");
    release(index);
  }
  begin(units, options_.gather_mode == GatherMode::kAllGather
                   ? GatherMode::kExact
                   : options_.gather_mode);
}

void Fetcher::begin(UnitRefs units, GatherMode mode) {
  const auto indices = indices_of(units);
  // All are pinned before any is fetched: making room for one must not
  // release another.
  for (const auto index : indices) ++entries_[index].num_pins;
  try {
    for (const auto index : indices) access(index, mode);
    for (const auto index : indices) entries_[index].unit->finish_gather();
    if (indices.size() < units.size()) count_resident(units, 1);
  } catch (...) {
    for (const auto index : indices) --entries_[index].num_pins;
    throw;
  }
}

void Fetcher::end_access(UnitRefs units) noexcept {
  const std::lock_guard lock(mutex_);
  const auto indices = indices_of(units);
  for (const auto index : indices) {
    auto& entry = entries_[index];
    if (--entry.num_pins == 0 && entry.is_due) release(index);
  }
  if (indices.size() < units.size()) count_resident(units, -1);
}

void Fetcher::count_resident(UnitRefs units, int change) {
  for (const auto* unit : units) {
    if (unit->options().is_resident) resident_pins_[unit] += change;
  }
}

void Fetcher::discard(UnitRefs units) {
  const std::lock_guard lock(mutex_);
  for (const auto index : indices_of(units)) release(index);
  last_ = TraceCursor::kLost;
}

std::string Fetcher::where() const {
  const std::lock_guard lock(mutex_);
  return fmt::format("[rank {}] {}", all_.global_rank(), position_);
}

void Fetcher::set_position(std::string position) {
  const std::lock_guard lock(mutex_);
  position_ = std::move(position);
}

void Fetcher::mark_backward(bool is_in_backward) {
  const std::lock_guard lock(mutex_);
  is_in_backward_ = is_in_backward;
  if (!is_in_backward) recorder_.end_pass();
  if (options_.plan.max_reuse_numel > 0) return;
  // Nothing may be reused, so neither may the unit that forward ended with.
  recorder_.split();
  // Not while it is on its way: if that failed it would raise, and the failure
  // may be what ends the scope.
  if (last_ != TraceCursor::kLost &&
      entries_[last_].unit->state() == UnitState::kUnsharded) {
    release(last_);
  }
  last_ = TraceCursor::kLost;
}

void Fetcher::check_idle(const char* operation) const {
  const std::lock_guard lock(mutex_);
  std::string names;
  for (const auto& entry : entries_) {
    if (entry.num_pins > 0) names += "\n  " + entry.unit->name();
  }
  for (const auto& [unit, num_pins] : resident_pins_) {
    if (num_pins > 0) names += "\n  " + unit->name();
  }
  TORCH_CHECK_VALUE(names.empty(), "[rank ", all_.global_rank(), "] ",
                    position_, ": ", operation,
                    " while these are gathered:", names,
                    "\nClose nfold::GatheredParameters first.");
}

void Fetcher::end_step() {
  const std::lock_guard lock(mutex_);
  is_in_backward_ = false;
  release_unpinned();
  auto trace = recorder_.take();
  if (!trace.empty() && trace != plan_.trace) {
    std::vector<std::int64_t> numels;
    for (const auto& entry : entries_) {
      numels.push_back(entry.unit->layout().numel());
    }
    if (options_.logs_changes && !plan_.trace.empty()) {
      log_warning(
          "{}: parameters were used in another order than in the step before "
          "({} uses against {}); the fetch plan is made anew",
          position_, trace.size(), plan_.trace.size());
    }
    plan_ = compile_fetch_plan(std::move(trace), numels, options_.plan);
  }
  cursor_.rewind();
}

void Fetcher::release_all() {
  const std::lock_guard lock(mutex_);
  release_unpinned();
}

void Fetcher::verify() const {
  for (const auto* unit : units_) source_.verify(*unit);
}

FetchCounts Fetcher::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void Fetcher::reset_peak() {
  const std::lock_guard lock(mutex_);
  counts_.peak_bytes = live_bytes_;
}

c10::SmallVector<std::size_t, 4> Fetcher::indices_of(UnitRefs units) {
  c10::SmallVector<std::size_t, 4> indices;
  for (const auto* unit : units) {
    if (unit != recent_unit_) {
      const auto found = index_.find(unit);
      if (found == index_.end()) continue;
      recent_unit_ = unit;
      recent_index_ = found->second;
    }
    indices.push_back(recent_index_);
  }
  return indices;
}

bool Fetcher::is_whole(std::size_t unit) const {
  return !entries_[unit].unit->is_released();
}

std::int64_t Fetcher::numel_to_gather(std::size_t unit) const {
  return is_whole(unit) ? 0 : entries_[unit].unit->layout().numel();
}

void Fetcher::access(std::size_t unit, GatherMode mode) {
  // Inside an operator that has it, or a gather scope: nothing new.
  if (entries_[unit].num_pins > 1 && is_whole(unit)) return;
  if (is_in_backward_ || at::GradMode::is_enabled()) {
    recorder_.record(unit);
  } else {
    recorder_.record_unsure(unit);
  }
  if (unit == last_ && is_whole(unit)) return;
  last_ = unit;
  accessed_numel_ += entries_[unit].unit->layout().numel();
  const auto before = cursor_.position();
  const auto entry = cursor_.advance(unit);
  const bool is_planned =
      entry != TraceCursor::kLost &&
      entry == (before == TraceCursor::kLost ? 0 : before + 1);
  if (!plan_.trace.empty() && !is_planned && !is_whole(unit)) {
    ++counts_.misses;
  }
  if (entry == TraceCursor::kLost) {
    make_room(numel_to_gather(unit));
    gather({unit}, "unshard", mode);
  } else {
    follow_plan(entry, unit, mode);
  }
  touch(unit);
}

void Fetcher::follow_plan(std::size_t entry, std::size_t unit,
                          GatherMode mode) {
  const auto& step = plan_.steps[entry];
  for (const auto each : step.release) release(each);
  make_room(numel_to_gather(unit));
  gather({unit}, "unshard", mode);
  if (step.prefetch.empty()) return;
  std::vector<std::size_t> ahead;
  auto numel = live_numel_;
  for (const auto each : step.prefetch) {
    // Something kept it when the plan released it, or the plan was left.
    entries_[each].is_due = false;
    if (is_whole(each)) continue;
    // A scope may want it exact too, and operators not.
    if (mode == GatherMode::kExact && entries_[each].unit->options().codec) {
      break;
    }
    numel += entries_[each].unit->layout().numel();
    if (numel > options_.plan.max_live_numel) break;
    ahead.push_back(each);
  }
  counts_.prefetched += static_cast<std::int64_t>(ahead.size());
  gather(ahead, "prefetch", options_.gather_mode);
}

void Fetcher::make_room(std::int64_t numel) {
  const auto& limits = options_.plan;
  // Where a plan holds, it decides about reuse.
  const bool is_unplanned = cursor_.position() == TraceCursor::kLost;
  for (auto it = recency_.begin(); it != recency_.end();) {
    const auto unit = *it++;
    const auto unused = accessed_numel_ - entries_[unit].last_use;
    const bool is_over_budget = live_numel_ + numel > limits.max_live_numel;
    const bool is_stale = is_unplanned && unused > limits.max_reuse_numel;
    if (is_over_budget || is_stale) release(unit);
  }
}

void Fetcher::gather(const std::vector<std::size_t>& units, const char* purpose,
                     GatherMode mode) {
  if (std::all_of(units.begin(), units.end(),
                  [this](std::size_t unit) { return is_whole(unit); })) {
    return;
  }
  std::vector<ShardedUnit*> sharded;
  for (const auto unit : units) {
    if (is_whole(unit)) continue;
    auto* each = entries_[unit].unit;
    sharded.push_back(each);
    live_numel_ += each->layout().numel();
    live_bytes_ += each->full_bytes();
  }
  const ProfileRange range("nfold::unshard");
  counts_.gathers += static_cast<std::int64_t>(sharded.size());
  counts_.peak_bytes = std::max(counts_.peak_bytes, live_bytes_);
  const auto groups = announce(sharded, purpose, mode);
  if (options_.is_sequential) {
    for (auto* unit : sharded) {
      ShardedUnit::begin_gather({unit}, mode);
    }
  } else {
    ShardedUnit::begin_gather(sharded, mode);
  }
  for (auto* group : groups) group->impl().set_tag(0);
  for (const auto unit : units) touch(unit);
}

// Tells each group what its next collectives are, for errors and so that ranks
// that gather something else find out.
std::vector<Group*> Fetcher::announce(const std::vector<ShardedUnit*>& units,
                                      const char* purpose, GatherMode mode) {
  struct Announcement {
    std::string names;
    Hasher tag;
  };
  std::map<Group*, Announcement> by_group;
  for (const auto* unit : units) {
    for (auto* group : unit->gather_groups(mode)) {
      auto& announcement = by_group[group];
      if (announcement.names.empty()) {
        announcement.tag.add_number(static_cast<std::int64_t>(plan_.hash));
      } else {
        announcement.names += ", ";
      }
      announcement.names += unit->name();
      announcement.tag.add_number(static_cast<std::int64_t>(index_.at(unit)));
    }
  }
  std::vector<Group*> groups;
  for (auto& [group, announcement] : by_group) {
    groups.push_back(group);
    group->impl().set_label(
        fmt::format("{}, {} {}", position_, purpose, announcement.names));
    group->impl().set_tag(announcement.tag.digest());
  }
  return groups;
}

void Fetcher::release(std::size_t unit) {
  auto& entry = entries_[unit];
  entry.is_due = entry.num_pins > 0;
  if (entry.is_due || !is_whole(unit)) return;
  entry.unit->finish_gather();
  entry.unit->release();
  live_numel_ -= entry.unit->layout().numel();
  live_bytes_ -= entry.unit->full_bytes();
  if (entry.is_listed) recency_.erase(entry.recency);
  entry.is_listed = false;
}

void Fetcher::touch(std::size_t unit) {
  auto& entry = entries_[unit];
  if (entry.is_listed) recency_.erase(entry.recency);
  entry.recency = recency_.insert(recency_.end(), unit);
  entry.is_listed = true;
  entry.last_use = accessed_numel_;
}

void Fetcher::release_unpinned() {
  for (std::size_t unit = 0; unit < entries_.size(); ++unit) release(unit);
  last_ = TraceCursor::kLost;
}

}  // namespace nfold
