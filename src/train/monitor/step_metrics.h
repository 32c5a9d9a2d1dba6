// File: step_metrics.h
//
// What the trainer records of one step, for every writer of this folder. A
// plain struct.
#pragma once

#include <cstdint>
#include <optional>

#include "nfold/report.h"

namespace nfold::train {

// Of the mixtures of experts, over all ranks and micro steps.
struct MixtureMetrics {
  double aux_loss = 0;       // mean over mixtures; 1 if all experts are used
                             // alike
  double dropped_share = 0;  // choices of an expert that found no room
};

struct StepMetrics {
  std::int64_t step = 0;
  double loss = 0;           // mean over the global batch
  std::int64_t tokens = 0;   // trained on so far, over all ranks
  std::int64_t samples = 0;  // sequences so far, over all ranks
  double tokens_per_second = 0;
  double step_ms = 0;
  std::optional<double> val_loss = {};
  std::optional<MixtureMetrics> mixture = {};  // of a model that has any
  // grad_norm, lr, loss_scale, is_skipped, the times and the counters. Its
  // `memory` should be that of the largest rank.
  StepReport report = {};
};

}  // namespace nfold::train
