// File: model_agreement.h
//
// Before anything is sharded, all ranks must hold the same model: a rank with
// another architecture would corrupt every other, and one with other values
// (another seed) would train a mixture.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "nfold/group.h"
#include "param/param_state.h"

namespace nfold {

// Compares names, shapes, dtypes and requires_grad of all parameters and
// buffers over the group, then their values; where values differ, rank 0's
// win on every rank. Collective.
//
// Returns the names of tensors whose values differed, equal on all ranks.
// Raises c10::ValueError on every rank, naming the first rank and tensor that
// differ from rank 0, when the models do not match.
std::vector<std::string> agree_on_model(Group& group,
                                        const torch::nn::Module& module,
                                        const std::vector<ParamState>& params);

}  // namespace nfold
