// File: training_run.h
//
// Trains a model, the hard one unless told otherwise, for some steps, sharded
// over ranks as threads or as one plain libtorch process, and returns
// everything that must be equal.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hard_model.h"
#include "nfold/nfold.h"
#include "testing/thread_world.h"

namespace nfold::testing {

inline constexpr std::int64_t kLength = 5;

// A module and its mean loss of [rows, kLength] tokens and targets.
struct TrainedModel {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor& tokens, const at::Tensor& targets,
                           std::int64_t step)>
      loss;
};

// The hard model, with the same weights for every caller.
TrainedModel hard_model_to_train();

struct RunSettings {
  int num_ranks = 2;
  Transport transport = transport_for_tests();
  // Called on every rank, one at a time, with torch seeded alike.
  std::function<TrainedModel()> make_model = hard_model_to_train;
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

Config config_of(const RunSettings& settings);

RunResult run_sharded(const RunSettings& settings);
// The body of one rank; `world` may be threads or processes.
RunResult run_rank(World& world, const RunSettings& settings);
// One plain process, whole batches, torch::optim's optimizer.
RunResult run_plain(const RunSettings& settings, bool uses_sgd);

// Empty when equal bit for bit, else what differs first.
std::string difference(const RunResult& a, const RunResult& b);
// Largest |a - b| / (|b| + small) over all parameter elements.
double relative_difference(const RunResult& a, const RunResult& b);
// The same of the mean losses and the gradient norms, step by step.
double relative_curve_difference(const RunResult& a, const RunResult& b);

}  // namespace nfold::testing
