// File: lr_schedule.h
//
// The learning rate, and with OneCycle the momentum, as a function of the
// number of optimizer updates done.
//
//   LrSchedule schedule = make_lr_schedule(*config.scheduler, optimizer);
//   schedule.apply(0, optimizer.groups());          // before the first update
//   schedule.apply(num_done, optimizer.groups());   // after each
//
// The values are those of DeepSpeed's schedulers of the same name, including
// that the first update of a warm-up has the lowest rate (WarmupCosineLR: 0)
// and that OneCycle starts from its lowest momentum. A value: nothing to save
// but the number of updates. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "nfold/config.h"
#include "optim/sharded_optimizer.h"

namespace nfold {

class LrSchedule {
 public:
  // base_lrs: the rate each parameter group was made with; WarmupCosineLR, and
  // WarmupLR without a maximum, scale them. Raises c10::ValueError when a
  // number of steps is out of its range.
  LrSchedule(const SchedulerConfig& config, std::vector<double> base_lrs);

  // updates_done: since the start, or since last_batch_iteration if the
  // configuration gives one.
  double lr(std::int64_t updates_done, std::size_t group = 0) const;
  // Empty when the schedule leaves it alone.
  std::optional<double> momentum(std::int64_t updates_done) const;
  // Writes both into groups, in the order of base_lrs. Raises c10::ValueError
  // for another number of groups.
  void apply(std::int64_t updates_done, std::vector<OptimGroup>& groups) const;

 private:
  double warmup_progress(std::int64_t iteration) const;
  double warmup_lr(std::int64_t iteration, std::size_t group) const;
  double cosine_ratio(std::int64_t iteration) const;
  double range_test_lr(std::int64_t iteration) const;
  // 0 at the ends of the cycle, 1 at its top.
  double cycle_height(std::int64_t iteration) const;
  // Decay intervals after the cycle; empty within it.
  std::optional<double> decay_intervals(std::int64_t iteration) const;
  std::int64_t cycle_size() const { return first_size_ + second_size_; }

  SchedulerType type_;
  SchedulerParams params_;
  std::vector<double> base_lrs_;
  std::int64_t first_size_ = 0;
  std::int64_t second_size_ = 0;
};

// From the groups as they are now.
LrSchedule make_lr_schedule(const SchedulerConfig& config,
                            const ShardedOptimizer& optimizer);

}  // namespace nfold
