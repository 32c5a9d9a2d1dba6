// File: operator_call.h
//
// One call of an operator on its way through the recorder, with the questions
// that several parts of it ask.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/TensorBody.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <vector>

#include "param/operator_traits.h"

namespace nfold {

struct OperatorCall {
  const c10::OperatorHandle& op;
  const OperatorTraits& traits;
  c10::DispatchKeySet keys;
  torch::jit::Stack arguments;

  std::vector<at::Tensor> tensors() const;
  // Those it changes.
  std::vector<at::Tensor> written_tensors() const;
  bool needs_history() const;  // of autograd

  // The arguments of these names, where the operator has them and the caller
  // has given them.
  std::optional<c10::Device> device() const;
  std::optional<c10::Layout> layout() const;
  bool asks_for_meta() const;
  // Where its new tensors are: as asked for, else where its tensors are.
  c10::Device result_device() const;
  // What a random operator draws from.
  at::Generator generator() const;

  // Runs it, and what it calls, unrecorded; returns the results.
  torch::jit::Stack run() const;
  torch::jit::Stack run_with(torch::jit::Stack other_arguments) const;
};

// The tensors of a stack of arguments that an operator of these traits changes.
std::vector<at::Tensor> written_tensors(const OperatorTraits& traits,
                                        const torch::jit::Stack& arguments);

// A dense tensor with memory of its own: what can be recorded.
bool is_plain(const at::Tensor& tensor);

}  // namespace nfold
