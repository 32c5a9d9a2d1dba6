// The rows of the tables below are what DeepSpeed 0.19.8's schedulers gave for
// two parameter groups made with lr 0.01 and 0.02.
#include "optim/lr_schedule.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nfold {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Row {
  std::int64_t updates_done;
  double first_lr;
  double second_lr;
  double momentum;  // kNone: left alone
};

SchedulerConfig config_of(SchedulerType type) {
  return {.type = type, .params = default_scheduler_params(type)};
}

template <std::size_t kNumRows>
void expect_rows(const SchedulerConfig& config, const Row (&rows)[kNumRows]) {
  const LrSchedule schedule(config, {0.01, 0.02});
  std::vector<OptimGroup> groups(2);
  for (const Row& row : rows) {
    schedule.apply(row.updates_done, groups);
    EXPECT_NEAR(groups[0].lr, row.first_lr, 1e-12) << row.updates_done;
    EXPECT_NEAR(groups[1].lr, row.second_lr, 1e-12) << row.updates_done;
    for (const OptimGroup& group : groups) {
      ASSERT_EQ(group.momentum.has_value(), !std::isnan(row.momentum));
      if (group.momentum) {
        EXPECT_NEAR(*group.momentum, row.momentum, 1e-12) << row.updates_done;
      }
    }
  }
}

TEST(LrSchedule, RangeTestRisesContinuously) {
  SchedulerConfig config = config_of(SchedulerType::kLrRangeTest);
  config.params.lr_range_test_min_lr = 0.001;
  config.params.lr_range_test_step_size = 5;
  config.params.lr_range_test_step_rate = 2.0;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.0014, 0.0014, kNone},
      {4, 0.0026000000000000003, 0.0026000000000000003, kNone},
      {5, 0.0030000000000000001, 0.0030000000000000001, kNone},
      {6, 0.0033999999999999998, 0.0033999999999999998, kNone},
      {13, 0.0062000000000000006, 0.0062000000000000006, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, RangeTestRisesInStairs) {
  SchedulerConfig config = config_of(SchedulerType::kLrRangeTest);
  config.params.lr_range_test_min_lr = 0.001;
  config.params.lr_range_test_step_size = 5;
  config.params.lr_range_test_step_rate = 2.0;
  config.params.lr_range_test_staircase = true;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.001, 0.001, kNone},
      {4, 0.001, 0.001, kNone},
      {5, 0.0030000000000000001, 0.0030000000000000001, kNone},
      {9, 0.0030000000000000001, 0.0030000000000000001, kNone},
      {10, 0.0050000000000000001, 0.0050000000000000001, kNone},
      {13, 0.0050000000000000001, 0.0050000000000000001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, OneCycleRisesAndFallsAndStays) {
  SchedulerConfig config = config_of(SchedulerType::kOneCycle);
  config.params.cycle_min_lr = 0.001;
  config.params.cycle_max_lr = 0.01;
  config.params.cycle_first_step_size = 10;
  config.params.cycle_second_step_size = 5;
  const Row rows[] = {
      {0, 0.001, 0.001, 0.80000000000000004},
      {1, 0.0018999999999999998, 0.0018999999999999998, 0.89000000000000001},
      {2, 0.0027999999999999995, 0.0027999999999999995, 0.88},
      {5, 0.0054999999999999997, 0.0054999999999999997, 0.85000000000000009},
      {9, 0.0091000000000000004, 0.0091000000000000004, 0.81000000000000005},
      {10, 0.0099999999999999985, 0.0099999999999999985, 0.80000000000000004},
      {11, 0.008199999999999999, 0.008199999999999999, 0.82000000000000006},
      {14, 0.0027999999999999995, 0.0027999999999999995, 0.88},
      {15, 0.001, 0.001, 0.90000000000000002},
      {16, 0.001, 0.001, 0.90000000000000002},
      {25, 0.001, 0.001, 0.90000000000000002},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, OneCycleDecaysAfterwards) {
  SchedulerConfig config = config_of(SchedulerType::kOneCycle);
  config.params.decay_step_size = 4;
  config.params.decay_lr_rate = 0.5;
  config.params.decay_mom_rate = 0.02;
  config.params.cycle_min_lr = 0.001;
  config.params.cycle_max_lr = 0.01;
  config.params.cycle_first_step_size = 10;
  config.params.cycle_second_step_size = 5;
  const Row rows[] = {
      {0, 0.001, 0.001, 0.80000000000000004},
      {10, 0.0099999999999999985, 0.0099999999999999985, 0.80000000000000004},
      {14, 0.0027999999999999995, 0.0027999999999999995, 0.88},
      {15, 0.001, 0.001, 0.90000000000000002},
      {16, 0.00088888888888888893, 0.00088888888888888893, 0.90449999999999997},
      {17, 0.00080000000000000004, 0.00080000000000000004, 0.90900000000000003},
      {25, 0.00044444444444444447, 0.00044444444444444447, 0.94500000000000006},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, OneCycleInStairs) {
  SchedulerConfig config = config_of(SchedulerType::kOneCycle);
  config.params.cycle_min_lr = 0.001;
  config.params.cycle_max_lr = 0.01;
  config.params.cycle_first_step_size = 10;
  config.params.cycle_first_stair_count = 4;
  config.params.cycle_second_stair_count = 2;
  config.params.cycle_second_step_size = 9;
  const Row rows[] = {
      {0, 0.001, 0.001, 0.80000000000000004},
      {1, 0.001, 0.001, 0.90000000000000002},
      {2, 0.001, 0.001, 0.90000000000000002},
      {3, 0.0032500000000000003, 0.0032500000000000003, 0.875},
      {5, 0.0055000000000000005, 0.0055000000000000005, 0.85000000000000009},
      {8, 0.0077500000000000008, 0.0077500000000000008, 0.82500000000000007},
      {9, 0.0077500000000000008, 0.0077500000000000008, 0.82500000000000007},
      {10, 0.010000000000000002, 0.010000000000000002, 0.80000000000000004},
      {11, 0.0055000000000000005, 0.0055000000000000005, 0.85000000000000009},
      {14, 0.0055000000000000005, 0.0055000000000000005, 0.85000000000000009},
      {15, 0.001, 0.001, 0.90000000000000002},
      {18, 0.001, 0.001, 0.90000000000000002},
      {19, 0.001, 0.001, 0.90000000000000002},
      {21, 0.001, 0.001, 0.90000000000000002},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, OneCycleLeavesMomentumAlone) {
  SchedulerConfig config = config_of(SchedulerType::kOneCycle);
  config.params.cycle_min_lr = 0.001;
  config.params.cycle_max_lr = 0.01;
  config.params.cycle_first_step_size = 5;
  config.params.cycle_momentum = false;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.0028000000000000021, 0.0028000000000000021, kNone},
      {5, 0.010000000000000002, 0.010000000000000002, kNone},
      {6, 0.008199999999999999, 0.008199999999999999, kNone},
      {9, 0.0028000000000000021, 0.0028000000000000021, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, OneCycleWithoutSecondHalf) {
  SchedulerConfig config = config_of(SchedulerType::kOneCycle);
  config.params.cycle_min_lr = 0.001;
  config.params.cycle_max_lr = 0.01;
  config.params.cycle_first_step_size = 5;
  config.params.cycle_second_step_size = 0;
  const Row rows[] = {
      {0, 0.001, 0.001, 0.80000000000000004},
      {1, 0.0027999999999999995, 0.0027999999999999995, 0.88},
      {4, 0.0082000000000000024, 0.0082000000000000024, 0.82000000000000006},
      {5, 0.001, 0.001, 0.90000000000000002},
      {6, 0.001, 0.001, 0.90000000000000002},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupEndsAtTheGroupsOwnRate) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupLr);
  config.params.warmup_min_lr = 0.001;
  config.params.warmup_num_steps = 10;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.001, 0.001, kNone},
      {2, 0.0037092699609758304, 0.0067195699176156413, kNone},
      {5, 0.0072907300390241681, 0.014280430082384353, kNone},
      {9, 0.0095881825849539228, 0.01913060767934717, kNone},
      {10, 0.0099999999999999985, 0.019999999999999997, kNone},
      {11, 0.010000000000000002, 0.02, kNone},
      {20, 0.010000000000000002, 0.02, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupLinear) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupLr);
  config.params.warmup_min_lr = 0.001;
  config.params.warmup_max_lr = 0.004;
  config.params.warmup_num_steps = 10;
  config.params.warmup_type = WarmupType::kLinear;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.001, 0.001, kNone},
      {2, 0.0012999999999999999, 0.0012999999999999999, kNone},
      {9, 0.0034000000000000002, 0.0034000000000000002, kNone},
      {10, 0.0037000000000000002, 0.0037000000000000002, kNone},
      {11, 0.0040000000000000001, 0.0040000000000000001, kNone},
      {20, 0.0040000000000000001, 0.0040000000000000001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupOfOneStepTakesTwo) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupLr);
  config.params.warmup_num_steps = 1;
  const Row rows[] = {
      {0, 0, 0, kNone},
      {1, 0, 0, kNone},
      {2, 0.01, 0.02, kNone},
      {3, 0.01, 0.02, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupDecayLog) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupDecayLr);
  config.params.total_num_steps = 30;
  config.params.warmup_min_lr = 0.001;
  config.params.warmup_max_lr = 0.004;
  config.params.warmup_num_steps = 10;
  config.params.warmup_type = WarmupType::kLog;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.001, 0.001, kNone},
      {2, 0.0019030899869919434, 0.0019030899869919434, kNone},
      {5, 0.003096910013008056, 0.003096910013008056, kNone},
      {10, 0.0040000000000000001, 0.0040000000000000001, kNone},
      {11, 0.0040000000000000001, 0.0040000000000000001, kNone},
      {12, 0.0038500000000000001, 0.0038500000000000001, kNone},
      {20, 0.0026500000000000004, 0.0026500000000000004, kNone},
      {30, 0.00115, 0.00115, kNone},
      {31, 0.001, 0.001, kNone},
      {40, 0.001, 0.001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupCosineLog) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupCosineLr);
  config.params.total_num_steps = 30;
  config.params.warmup_min_ratio = 0.1;
  config.params.warmup_num_steps = 10;
  config.params.cos_min_ratio = 0.05;
  config.params.warmup_type = WarmupType::kLog;
  const Row rows[] = {
      {0, 0, 0, kNone},
      {1, 0.001, 0.002, kNone},
      {2, 0.0037092699609758309, 0.0074185399219516618, kNone},
      {5, 0.0072907300390241681, 0.014581460078048336, kNone},
      {10, 0.0099999999999999985, 0.019999999999999997, kNone},
      {11, 0.0099415196178269053, 0.019883039235653811, kNone},
      {12, 0.0097675184524019798, 0.01953503690480396, kNone},
      {20, 0.0052500000000000003, 0.010500000000000001, kNone},
      {29, 0.00055848038217309621, 0.0011169607643461924, kNone},
      {30, 0.00050000000000000001, 0.001, kNone},
      {40, 0.00050000000000000001, 0.001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupDecayLinear) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupDecayLr);
  config.params.total_num_steps = 30;
  config.params.warmup_min_lr = 0.001;
  config.params.warmup_max_lr = 0.004;
  config.params.warmup_num_steps = 10;
  config.params.warmup_type = WarmupType::kLinear;
  const Row rows[] = {
      {0, 0.001, 0.001, kNone},
      {1, 0.001, 0.001, kNone},
      {2, 0.0012999999999999999, 0.0012999999999999999, kNone},
      {5, 0.0022000000000000001, 0.0022000000000000001, kNone},
      {10, 0.0037000000000000002, 0.0037000000000000002, kNone},
      {11, 0.0040000000000000001, 0.0040000000000000001, kNone},
      {12, 0.0038500000000000001, 0.0038500000000000001, kNone},
      {20, 0.0026500000000000004, 0.0026500000000000004, kNone},
      {30, 0.00115, 0.00115, kNone},
      {31, 0.001, 0.001, kNone},
      {40, 0.001, 0.001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupCosineLinear) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupCosineLr);
  config.params.total_num_steps = 30;
  config.params.warmup_min_ratio = 0.1;
  config.params.warmup_num_steps = 10;
  config.params.cos_min_ratio = 0.05;
  config.params.warmup_type = WarmupType::kLinear;
  const Row rows[] = {
      {0, 0, 0, kNone},
      {1, 0.001, 0.002, kNone},
      {2, 0.0019, 0.0038, kNone},
      {5, 0.0046000000000000008, 0.0092000000000000016, kNone},
      {10, 0.0091000000000000004, 0.018200000000000001, kNone},
      {11, 0.0099415196178269053, 0.019883039235653811, kNone},
      {12, 0.0097675184524019798, 0.01953503690480396, kNone},
      {20, 0.0052500000000000003, 0.010500000000000001, kNone},
      {29, 0.00055848038217309621, 0.0011169607643461924, kNone},
      {30, 0.00050000000000000001, 0.001, kNone},
      {40, 0.00050000000000000001, 0.001, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupDecayWithFewerStepsThanItsWarmup) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupDecayLr);
  config.params.total_num_steps = 1;
  config.params.warmup_num_steps = 1;
  const Row rows[] = {
      {0, 0, 0, kNone}, {1, 0, 0, kNone}, {2, 0.001, 0.001, kNone},
      {3, 0, 0, kNone}, {4, 0, 0, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, WarmupCosineWithFewerStepsThanItsWarmup) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupCosineLr);
  config.params.total_num_steps = 1;
  config.params.warmup_num_steps = 1;
  const Row rows[] = {
      {0, 0, 0, kNone},
      {1, 0, 0, kNone},
      {2, 0.01, 0.02, kNone},
      {3, 1.0000000000000002e-06, 2.0000000000000003e-06, kNone},
      {4, 1.0000000000000002e-06, 2.0000000000000003e-06, kNone},
  };
  expect_rows(config, rows);
}

TEST(LrSchedule, ContinuesFromTheLastIteration) {
  SchedulerConfig config = config_of(SchedulerType::kWarmupLr);
  config.params.warmup_num_steps = 10;
  const LrSchedule whole(config, {0.01});
  config.params.last_batch_iteration = 3;
  const LrSchedule rest(config, {0.01});
  EXPECT_EQ(rest.lr(0), whole.lr(4));
  EXPECT_EQ(rest.lr(5), whole.lr(9));
}

TEST(LrSchedule, NumbersOfStepsOutOfRangeAreNamed) {
  SchedulerConfig warmup = config_of(SchedulerType::kWarmupLr);
  warmup.params.warmup_num_steps = 0;
  try {
    LrSchedule schedule(warmup, {0.01});
    FAIL() << "a warm-up of no steps was accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(
        std::string(error.what()).find("scheduler.params.warmup_num_steps"),
        std::string::npos);
  }
  SchedulerConfig decay = config_of(SchedulerType::kWarmupDecayLr);
  EXPECT_THROW(LrSchedule(decay, {0.01}), c10::ValueError);
  SchedulerConfig range = config_of(SchedulerType::kLrRangeTest);
  range.params.lr_range_test_step_size = -1;
  EXPECT_THROW(LrSchedule(range, {0.01}), c10::ValueError);
  SchedulerConfig cycle = config_of(SchedulerType::kOneCycle);
  cycle.params.cycle_second_step_size = -1;
  EXPECT_THROW(LrSchedule(cycle, {0.01}), c10::ValueError);
}

TEST(LrSchedule, GroupsMustBeThoseItWasMadeWith) {
  const LrSchedule schedule(config_of(SchedulerType::kWarmupLr), {0.01, 0.02});
  std::vector<OptimGroup> groups(3);
  EXPECT_THROW(schedule.apply(0, groups), c10::ValueError);
}

}  // namespace
}  // namespace nfold
