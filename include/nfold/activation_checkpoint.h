// File: nfold/activation_checkpoint.h
//
// Activation checkpointing for C++ modules: a function runs without keeping
// what backward needs, and runs a second time when backward asks for it. Use
// it around blocks whose activations do not fit; it costs about a third of
// the step in time and leaves only the inputs of each block in memory.
//
//   auto y = nfold::checkpoint(
//       [this](const at::Tensor& x) { return mlp_->forward(norm_->forward(x));
//       }, x);
//
// - The gradients are bit-equal to those without checkpoint, those of
//   parameters and other tensors that the function captured included. Captured
//   tensors are read again by the second run: a tensor that this function
//   needs must be an input or a parameter, or stay as it is until backward.
// - The random state of the first run is restored for the second one and the
//   current one is kept, so dropout draws the same mask. Autocast likewise.
// - The second run stops as soon as the last tensor that backward needs is
//   there, so what follows it (the last matrix product, say) is not repeated.
// - Effects of the function other than its outputs happen twice, for instance
//   the running statistics of a batch norm. The function must not change its
//   inputs in place.
// - May be nested, called any number of times on one module, and used with
//   retain_graph and create_graph.
// - Without gradient mode the function simply runs.
//
// Thread-safe as far as the function is. The random state is that of the
// process, so threads that draw from it at the same time disturb each other
// with or without checkpointing.
#pragma once

#include <ATen/core/TensorBody.h>

#include <functional>
#include <vector>

namespace nfold {

// Runs function(inputs) and returns its outputs. `inputs` may be undefined,
// of integer type, or not require gradients.
//
// Backward raises what the function raises in its second run, and
// c10::ValueError when the second run does not save the same tensors as the
// first (their number, shapes, dtypes and devices are compared).
// Raises c10::NotImplementedError in a process where another front end, such
// as Python, has its own autograd engine.
std::vector<at::Tensor> checkpoint(
    const std::function<
        std::vector<at::Tensor>(const std::vector<at::Tensor>&)>& function,
    std::vector<at::Tensor> inputs);

// The same for one tensor in and one out.
at::Tensor checkpoint(
    const std::function<at::Tensor(const at::Tensor&)>& function,
    const at::Tensor& input);

}  // namespace nfold
