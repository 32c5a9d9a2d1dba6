// File: model_agreement.h
//
// Before anything is sharded, all ranks must hold the same model: a rank with
// another architecture would corrupt every other, and one with other values
// (another seed) would train a mixture.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nfold/group.h"
#include "param/param_state.h"
#include "param/unit_groups.h"

namespace nfold {

// Compares names, shapes, dtypes, ties and requires_grad of all parameters and
// buffers, each over the ranks that hold it; values are not looked at.
// Collective. Raises c10::ValueError on every rank, naming the first rank and
// tensor that differ from rank 0, when the models do not match.
void check_same_structure(const GroupsOf& groups_of,
                          const torch::nn::Module& module,
                          const std::vector<ParamState>& params);

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
  Placement placement = {};
};

std::vector<NamedTensor> buffers_of(const torch::nn::Module& module);

// Compares values; where they differ, rank 0's win on every rank. Names and
// sizes must be the same on all ranks. Collective. Returns the names of those
// that differed, equal on all ranks.
std::vector<std::string> agree_on_values(
    Group& group, const std::vector<NamedTensor>& tensors);

// The same, each tensor over the ranks that shall hold the same values of it.
std::vector<std::string> agree_on_values(
    const GroupsOf& groups_of, const std::vector<NamedTensor>& tensors);

// check_same_structure, then agree_on_values of all parameters and buffers.
std::vector<std::string> agree_on_model(const GroupsOf& groups_of,
                                        const torch::nn::Module& module,
                                        const std::vector<ParamState>& params);

}  // namespace nfold
