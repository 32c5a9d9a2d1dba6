// File: optimizer_setup.h
//
// From the user's parameter groups and the configuration to an optimizer over
// owned ranges.
#pragma once

#include <memory>

#include "engine/sharded_model.h"
#include "nfold/engine.h"
#include "optim/sharded_optimizer.h"

namespace nfold {

// Null when neither the configuration nor the options name an optimizer.
// Raises c10::ValueError when a parameter is in two groups, a trainable one in
// none, or a group holds a tensor that is no trainable parameter.
std::unique_ptr<ShardedOptimizer> make_engine_optimizer(
    const ShardedModel& model, const Config& config,
    const EngineOptions& options);

}  // namespace nfold
