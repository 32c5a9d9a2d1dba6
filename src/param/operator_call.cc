#include "param/operator_call.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "param/dispatch_fallback.h"
#include "param/tensor_walk.h"

namespace nfold {

std::vector<at::Tensor> OperatorCall::tensors() const {
  return tensors_of(arguments);
}

std::vector<at::Tensor> OperatorCall::written_tensors() const {
  return nfold::written_tensors(traits, arguments);
}

bool OperatorCall::needs_history() const {
  if (!at::GradMode::is_enabled()) return false;
  const auto all = tensors();
  return std::any_of(all.begin(), all.end(), [](const at::Tensor& tensor) {
    return tensor.requires_grad();
  });
}

std::optional<c10::Device> OperatorCall::device() const {
  if (!traits.device) return std::nullopt;
  return arguments[*traits.device].toOptional<c10::Device>();
}

std::optional<c10::Layout> OperatorCall::layout() const {
  if (!traits.layout) return std::nullopt;
  return arguments[*traits.layout].toOptional<c10::Layout>();
}

bool OperatorCall::asks_for_meta() const {
  const auto asked = device();
  return asked && asked->is_meta();
}

c10::Device OperatorCall::result_device() const {
  if (const auto asked = device()) return *asked;
  const auto all = tensors();
  // A number is on the CPU, and joins tensors of any device.
  const auto first =
      std::find_if(all.begin(), all.end(),
                   [](const at::Tensor& tensor) { return tensor.dim() > 0; });
  if (first != all.end()) return first->device();
  return all.empty() ? c10::Device(c10::DeviceType::CPU) : all[0].device();
}

at::Generator OperatorCall::generator() const {
  if (traits.generator) {
    const c10::IValue& given = arguments[*traits.generator];
    if (given.isGenerator()) return given.toGenerator();
  }
  return at::globalContext().defaultGenerator(result_device());
}

torch::jit::Stack OperatorCall::run() const { return run_with(arguments); }

torch::jit::Stack OperatorCall::run_with(
    torch::jit::Stack other_arguments) const {
  UnrecordedScope unrecorded;
  call_below_recording(op, keys, &other_arguments);
  return other_arguments;
}

std::vector<at::Tensor> written_tensors(const OperatorTraits& traits,
                                        const torch::jit::Stack& arguments) {
  std::vector<at::Tensor> result;
  for (std::size_t i : traits.written) {
    visit_tensors(arguments[i],
                  [&](const at::Tensor& tensor) { result.push_back(tensor); });
  }
  return result;
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == c10::Layout::Strided && tensor.has_storage() &&
         !tensor.is_quantized() && !tensor.is_meta();
}

}  // namespace nfold
