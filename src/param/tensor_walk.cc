#include "param/tensor_walk.h"

#include <ATen/core/Dict.h>
#include <ATen/core/List.h>

#include <optional>
#include <utility>

namespace nfold {

bool holds_tensors(const c10::IValue& value) {
  bool result = false;
  visit_tensors(value, [&](const at::Tensor&) { result = true; });
  return result;
}

void visit_tensors(const c10::IValue& value,
                   const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) visit(value.toTensor());
  } else if (value.isIntList() || value.isDoubleList() || value.isBoolList()) {
    return;  // the common lists; not worth a look at each element
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      visit_tensors(element, visit);
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      visit_tensors(element, visit);
    }
  } else if (value.isGenericDict()) {
    for (const auto& item : value.toGenericDict()) {
      visit_tensors(item.value(), visit);
    }
  }
}

c10::IValue map_tensors(
    const c10::IValue& value,
    const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(map(value.toTensor()))
                                      : value;
  }
  if (!holds_tensors(value)) return value;
  if (value.isList()) {
    auto list = value.toList().copy();
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, map_tensors(list.get(i), map));
    }
    return list;
  }
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(map_tensors(element, map));
    }
    return c10::ivalue::Tuple::create(std::move(elements));
  }
  auto dict = value.toGenericDict().copy();
  for (const auto& item : value.toGenericDict()) {
    dict.insert_or_assign(item.key(), map_tensors(item.value(), map));
  }
  return dict;
}

torch::jit::Stack map_stack(
    const torch::jit::Stack& stack,
    const std::function<at::Tensor(const at::Tensor&)>& map) {
  torch::jit::Stack result;
  result.reserve(stack.size());
  for (const c10::IValue& value : stack) {
    result.push_back(map_tensors(value, map));
  }
  return result;
}

std::vector<at::Tensor> tensors_of(const torch::jit::Stack& stack) {
  std::vector<at::Tensor> result;
  for (const c10::IValue& value : stack) {
    visit_tensors(value,
                  [&](const at::Tensor& tensor) { result.push_back(tensor); });
  }
  return result;
}

}  // namespace nfold
