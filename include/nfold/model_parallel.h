// File: nfold/model_parallel.h
//
// Which parameters of a module are split over tensor ranks, or on some ranks
// only, as its modules say (placement.h): what norms and overflow checks that
// run without an Engine have to be told.
//
//   const nfold::NormOptions options{
//       .groups = {.model = &tensor_group},
//       .placements = nfold::placements_of(*model)};
//   nfold::clip_grad_norm(model->parameters(), 1.0, options);
//
// Pure functions.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "nfold/placement.h"

namespace nfold {

// One for each of module.parameters(), in their order.
std::vector<Placement> placements_of(const torch::nn::Module& module);

// Whether each tensor rank has a part of its own. param: as named_parameters()
// has it. Raises c10::ValueError if there is no such parameter.
bool is_model_parallel_parameter(const torch::nn::Module& module,
                                 const std::string& param);

}  // namespace nfold
