// File: initialized_modules.h
//
// Modules that nfold::init has sharded, until an Engine takes them over. In
// between a fetcher serves their parameters, so that operators and gather
// scopes work.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <optional>

#include "engine/sharded_model.h"

namespace nfold {

// A module that is destroyed before an Engine takes it is forgotten with the
// next call of either function. Thread-safe.
void keep_initialized(const std::shared_ptr<torch::nn::Module>& module,
                      Mesh& mesh, ShardedModel model);

// Nothing for a module that was not initialised. Raises c10::ValueError for
// one that was for another configuration or group, or in use by a gather
// scope, or has parameters that something else has sharded; then it stays.
std::optional<ShardedModel> take_initialized(
    const std::shared_ptr<torch::nn::Module>& module, const Mesh& mesh,
    const Config& config);

}  // namespace nfold
