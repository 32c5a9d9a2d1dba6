// File: training_run.h
//
// Trains the hard model for some steps, sharded over ranks as threads or as
// one plain libtorch process, and returns everything that must be equal.
#pragma once

#include <string>
#include <vector>

#include "hard_model.h"
#include "nfold/nfold.h"

namespace nfold::testing {

struct RunSettings {
  int num_ranks = 2;
  // The global batch of a step, split evenly.
  std::int64_t global_rows = 12;
  int num_steps = 50;
  int accumulation_steps = 1;
  int stage = 2;
  bool overlaps = false;
  std::int64_t bucket_numel = 500000000;
  // JSON members added to the configuration, each with a leading comma.
  std::string more_zero;
  std::string more;
  std::string optimizer =
      R"({"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1}})";
};

inline std::string name_of(const RunSettings& settings) {
  return "stage " + std::to_string(settings.stage) + ", " +
         std::to_string(settings.num_ranks) + " ranks, accumulation " +
         std::to_string(settings.accumulation_steps) + ", overlap " +
         std::to_string(settings.overlaps) + ", bucket " +
         std::to_string(settings.bucket_numel) + settings.more +
         settings.more_zero;
}

struct RunResult {
  // Of rank 0; one for each micro step.
  std::vector<double> losses;
  // Mean over ranks and micro steps; one for each step.
  std::vector<double> mean_losses;
  std::vector<double> grad_norms;
  std::vector<bool> skipped;
  std::vector<at::Tensor> params;         // fp32, full
  std::vector<at::Tensor> module_params;  // as the module holds them
  StepReport last_report;
};

inline constexpr std::int64_t kLength = 5;

Config config_of(const RunSettings& settings);
HardModel make_hard_model(bool ties_by_storage = true);

RunResult run_sharded(const RunSettings& settings);
// The body of one rank; `world` may be threads or processes.
RunResult run_rank(World& world, const RunSettings& settings);
// One plain process, whole batches, torch::optim's optimizer.
RunResult run_plain(const RunSettings& settings, bool uses_sgd);

// Empty when equal bit for bit, else what differs first.
std::string difference(const RunResult& a, const RunResult& b);
// Largest |a - b| / (|b| + small) over all parameter elements.
double relative_difference(const RunResult& a, const RunResult& b);

}  // namespace nfold::testing
