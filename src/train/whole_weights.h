// File: whole_weights.h
//
// The weights of a model of which each rank holds only some experts, or only
// parts of layers, brought together for a file.
//
//   const GatheredParameters scope(model->parameters());
//   const NamedTensors weights = whole_weights(*model, groups);
//   if (rank == 0) save_safetensors(path, weights);
//
// One thread at a time.
#pragma once

#include <torch/nn/module.h>

#include "nfold/checkpoint.h"
#include "train/models/causal_lm.h"

namespace nfold::train {

// Parameters by name, with the shapes they have on one rank. Those of all
// experts of every MixtureOfExperts are included, in the order of the module
// with each expert's parameter followed by its like of the other ranks; but on
// other ranks than the first of the expert group only the local ones.
// Collective over the groups; parameters must be gathered.
NamedTensors whole_weights(const torch::nn::Module& model,
                           const ModelGroups& groups);

}  // namespace nfold::train
