// File: nfold/params.h
//
// Reading and changing one parameter's fp32 value, gradient and optimizer
// state while it is sharded, at every stage. The names are DeepSpeed's.
//
//   auto value = nfold::safe_get_full_fp32_param(engine, layer->weight);
//   nfold::safe_set_full_fp32_param(engine, layer->weight, value * 0.5);
//
// `param` is a tensor of the engine's module (tied ones are one parameter).
// All functions are collective: every rank of the data-parallel group must
// call them in the same order with the same parameter.
//
// "Full" tensors have the parameter's shape. "Local" tensors are 1-D: the
// elements of the parameter that this rank owns, possibly none; at stage 0
// every rank owns all. Values are the optimizer's own (fp32 master weights in
// fp16 and bf16 runs), and a set reaches master weights and the module's
// parameter alike. Gradients are averaged over ranks and unscaled; there is
// one from backward until the step that uses it or zero_grad.
//
// Raise c10::ValueError for a tensor that is no parameter, a frozen parameter
// (gradient, state), a gradient outside of that span, an unknown state, or a
// value of another shape.
#pragma once

#include <ATen/core/TensorBody.h>

#include <string>
#include <vector>

#include "nfold/engine.h"

namespace nfold {

at::Tensor safe_get_full_fp32_param(Engine& engine, const at::Tensor& param);
void safe_set_full_fp32_param(Engine& engine, const at::Tensor& param,
                              const at::Tensor& value);
at::Tensor safe_get_full_grad(Engine& engine, const at::Tensor& param);
void safe_set_full_grad(Engine& engine, const at::Tensor& param,
                        const at::Tensor& value);
// `state`: "exp_avg", "exp_avg_sq", "momentum_buffer", ...
at::Tensor safe_get_full_optimizer_state(Engine& engine,
                                         const at::Tensor& param,
                                         const std::string& state);
void safe_set_full_optimizer_state(Engine& engine, const at::Tensor& param,
                                   const at::Tensor& value,
                                   const std::string& state);

at::Tensor safe_get_local_fp32_param(Engine& engine, const at::Tensor& param);
void safe_set_local_fp32_param(Engine& engine, const at::Tensor& param,
                               const at::Tensor& value);
at::Tensor safe_get_local_grad(Engine& engine, const at::Tensor& param);
void safe_set_local_grad(Engine& engine, const at::Tensor& param,
                         const at::Tensor& value);
at::Tensor safe_get_local_optimizer_state(Engine& engine,
                                          const at::Tensor& param,
                                          const std::string& state);
void safe_set_local_optimizer_state(Engine& engine, const at::Tensor& param,
                                    const at::Tensor& value,
                                    const std::string& state);

// Those of the tensors that are sharded parameters without memory now: stage 3
// has released them, or never gathered them. Others, and tensors that are not
// sharded, are not among them. Not collective.
std::vector<at::Tensor> get_inactive_params(
    const std::vector<at::Tensor>& params);

// For gradients that did not come through Engine::backward: sums the `grad` of
// each parameter over the ranks and gives every rank the local elements of the
// sum. Takes the gradients away (`grad` is undefined afterwards).
//
// buffers[i] is for params[i]: 1-D, of any floating-point dtype, with at least
// as many elements as are local; only these change. An undefined buffer is
// allocated, in fp32. With `accumulate` the sum is added to what is there.
// The gradients of several parameters travel in one collective per dtype.
//
// Raises c10::ValueError, before anything was changed, where a parameter has
// no gradient, stands twice, or its buffer is too small, of a wrong kind, or
// missing where it is to be accumulated to.
void partition_gradients(Engine& engine, const std::vector<at::Tensor>& params,
                         std::vector<at::Tensor>& buffers,
                         bool accumulate = false);

}  // namespace nfold
