// File: nfold/backward_hooks.h
//
// What a training loop asks of a backward pass: whether a value is a loss, a
// function that runs when backward begins, and how many parameters it reaches.
//
//   auto outputs = model->forward(batch);
//   nfold::register_output_backward_hooks(
//       outputs, [&] { timer.start(); },
//       [&](const at::Tensor& grad) { return grad * loss_scale; });
//
// An Engine needs none of these to be called. Hooks run on the thread of
// autograd that works on the output; registering is not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace nfold {

// A tensor of one element that has a gradient function.
bool maybe_loss_for_backward(const c10::IValue& value);

struct OutputHookFunctions {
  // When a backward pass first reaches one of the outputs: once per pass.
  std::function<void()> once;
  // Of the gradient of each output: what takes its place. Empty: none.
  std::function<at::Tensor(const at::Tensor&)> per_tensor{};
};

// Hooks on the tensors with a gradient function in nested outputs.
class OutputBackwardHooks {
 public:
  explicit OutputBackwardHooks(OutputHookFunctions functions);

  // Hooks onto the outputs, after removing those that are still there. The
  // hooks belong to the outputs: they, and what the functions hold, live as
  // long as these or their graph do, also without this object.
  void register_on(const c10::IValue& outputs);
  void remove();

 private:
  class State;
  std::shared_ptr<State> state_;
};

// The same in one call. The result may be dropped.
OutputBackwardHooks register_output_backward_hooks(
    const c10::IValue& outputs, std::function<void()> once,
    std::function<at::Tensor(const at::Tensor&)> per_tensor = {});

// How many of the parameters the backward pass that is running will compute a
// gradient for; those that share an accumulator count once. Called from a hook
// or a function of that pass, on its thread. Raises c10::ValueError outside of
// backward, c10::NotImplementedError inside of torch::autograd::grad.
std::int64_t count_used_parameters_in_backward(at::ArrayRef<at::Tensor> params);

}  // namespace nfold
