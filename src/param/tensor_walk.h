// File: tensor_walk.h
//
// The tensors among the arguments or results of an operator, wherever they
// stand: alone, in lists, optional, in tuples and dictionaries.
//
//   nfold::visit_tensors(value, [](const at::Tensor& tensor) { ... });
//   auto doubled = nfold::map_tensors(value, [](const at::Tensor& tensor) {
//     return tensor * 2;
//   });
//
// Undefined tensors are left out of the visit, and stay as they are. Pure;
// callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <functional>
#include <vector>

namespace nfold {

void visit_tensors(const c10::IValue& value,
                   const std::function<void(const at::Tensor&)>& visit);

bool holds_tensors(const c10::IValue& value);

// A value of the same type. Containers that hold tensors are new ones.
c10::IValue map_tensors(
    const c10::IValue& value,
    const std::function<at::Tensor(const at::Tensor&)>& map);

// The same for each value of a stack.
torch::jit::Stack map_stack(
    const torch::jit::Stack& stack,
    const std::function<at::Tensor(const at::Tensor&)>& map);

// All tensors of a stack, in the order of the visit.
std::vector<at::Tensor> tensors_of(const torch::jit::Stack& stack);

}  // namespace nfold
