// File: trainer.h
//
// Trains a language model as a configuration says: the work of `nfold train`.
//
//   auto world = World::from_environment();
//   Trainer trainer(TrainerConfig::read("examples/train.json", {}), world,
//                   "runs/1");
//   trainer.run();
//
// Every rank makes and runs one. Rank 0 writes the run directory: config.
// effective.json at the start, metrics.jsonl and TensorBoard events at every
// step, model.safetensors, config.json and tokenizer.json at the end; and it
// prints a summary to standard output. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "nfold/engine.h"
#include "nfold/mesh.h"
#include "nfold/world.h"
#include "train/models/causal_lm.h"
#include "train/monitor/event_writer.h"
#include "train/monitor/metrics_log.h"
#include "train/monitor/progress_bar.h"
#include "train/trainer_config.h"
#include "train/trainer_data.h"

namespace nfold::train {

// Raises c10::ValueError if the folder holds anything and is not to be
// overwritten; creates nothing.
void check_run_dir(const std::filesystem::path& run_dir, bool is_overwriting);

class Trainer {
 public:
  // `run_dir` matters on rank 0 only and must have been checked. Collective.
  Trainer(TrainerConfig config, const World& world,
          std::filesystem::path run_dir);
  ~Trainer();

  // Trains train.steps steps. Raises c10::ValueError, on every rank, when a
  // loss is not finite; names the rank and the step.
  void run();

 private:
  // What rank 0 writes while training.
  struct Monitor {
    MetricsLog metrics;
    EventWriter events;
    ProgressBar progress;
  };
  // One number and the memory of each rank, in rank order.
  struct Gathered {
    std::vector<double> values;
    std::vector<MemoryReport> memory;
  };

  // Ranks of one tensor or sequence group see the same rows; those of a
  // sequence group take their own tokens of them.
  at::Tensor loss_of(const TokenLoader& loader, std::int64_t step,
                     std::int64_t micro_step);
  void run_step(std::int64_t step);
  // Runs all micro steps but the optimizer's part of the last. Returns this
  // rank's mean loss.
  double accumulate(std::int64_t step);
  // Of what the last accumulate() ran, on all ranks. Collective for models
  // with mixtures of experts, else empty.
  std::optional<MixtureMetrics> mixture_metrics() const;
  double validate();
  Gathered gather(double value) const;
  // The mean of the ranks' losses, if all are finite.
  double checked_mean(const std::vector<double>& losses,
                      std::int64_t step) const;
  void save() const;
  std::string sample();
  void print_summary(const Gathered& gathered);

  TrainerConfig config_;
  const World& world_;
  const std::filesystem::path run_dir_;
  const BatchSizes batch_;
  TrainerData data_;
  std::shared_ptr<CausalLm> model_;
  Mesh mesh_;
  std::optional<Engine> engine_;
  std::unique_ptr<Monitor> monitor_;  // rank 0 only
  std::deque<double> recent_losses_;
  std::optional<double> val_loss_;
  MixtureTally mixtures_;  // of the micro steps of a step, on this rank
  CommCounts comm_{};
  double seconds_ = 0;
};

}  // namespace nfold::train
