// File: shape_inference.h
//
// What an operator would return, from sizes and dtypes alone: the operator runs
// on the meta device.
//
//   auto inferred = nfold::infer_on_meta(op, traits, twins);
//   inferred.results[0].toTensor().sizes();
//
// Callable from any thread. Needs a meta kernel; without one, or when the
// result's sizes depend on values, the operator raises c10::Error.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <cstddef>

#include "param/operator_traits.h"

namespace nfold {

struct InferredCall {
  torch::jit::Stack results;    // tensors on meta; results[i] of the schema
  torch::jit::Stack arguments;  // after the call, which may have resized them
};

// `twins` are arguments whose tensors are on meta. They are not changed; their
// storages may grow. Where a twin requires a gradient and gradients are
// enabled, so does each result that depends on it.
InferredCall infer_on_meta(const c10::OperatorHandle& op,
                           const OperatorTraits& traits,
                           const torch::jit::Stack& twins);

// Bytes of the distinct storages behind the tensors of a stack.
std::size_t storage_bytes(const torch::jit::Stack& stack);

}  // namespace nfold
