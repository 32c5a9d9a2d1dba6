// File: param_state.h
//
// The distinct parameters of a module: what the engine shards.
//
// A weight that is registered under several names, or as several tensors that
// alias exactly (tied embeddings), is one parameter with several names. Ties
// are found by storage, offset, sizes and strides, before anything moves, and
// stay ties afterwards.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "nfold/placement.h"

namespace nfold {

struct ParamState {
  std::string name;                // the first it is registered under
  std::vector<std::string> names;  // all of them
  // The module's tensors, each distinct object once. The first is the one
  // whose gradient is trained; all are views of the same storage.
  std::vector<at::Tensor> tensors;
  Placement placement = {};

  const at::Tensor& tensor() const { return tensors.front(); }
};

// What the modules from `module` down to a parameter or buffer say of it
// (nfold/placement.h). name: dotted path from `module`.
Placement placement_in(const torch::nn::Module& module,
                       const std::string& name);

// In order of registration. Raises c10::ValueError, naming both, when two
// parameters overlap without being the same, or tied ones are placed
// differently; c10::NotImplementedError for
// sparse or non-CPU parameters.
std::vector<ParamState> collect_params(const torch::nn::Module& module);

}  // namespace nfold
