#include "nfold/tensor_structure.h"

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <ATen/core/List.h>

#include "param/tensor_walk.h"

namespace nfold {
namespace {

bool are_equal_tensors(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(a, b.to(a.device()));
}

bool are_equal_entries(const c10::IValue& a, const c10::IValue& b) {
  if (a.isTensor() && b.isTensor()) {
    return are_equal_tensors(a.toTensor(), b.toTensor());
  }
  if (holds_tensors(a) || holds_tensors(b)) return a.is(b);
  return a == b;
}

bool are_equal_dictionaries(const c10::Dict<c10::IValue, c10::IValue>& a,
                            const c10::Dict<c10::IValue, c10::IValue>& b) {
  if (a.size() != b.size()) return false;
  for (const auto& item : a) {
    const auto found = b.find(item.key());
    if (found == b.end() || !are_equal_entries(item.value(), found->value())) {
      return false;
    }
  }
  return true;
}

}  // namespace

c10::IValue copy_to_device(const c10::IValue& value, c10::Device device,
                           const TensorCriterion& criterion) {
  return map_tensors(value, [&](const at::Tensor& tensor) {
    return criterion(tensor) ? tensor.to(device) : tensor;
  });
}

c10::IValue move_to_device(const c10::IValue& value, c10::Device device,
                           const TensorCriterion& criterion) {
  return map_tensors(value, [&](const at::Tensor& tensor) {
    if (!criterion || !criterion(tensor)) return tensor.to(device);
    tensor.set_data(tensor.detach().to(device));
    return tensor;
  });
}

std::int64_t get_tensor_bytes(const c10::IValue& value) {
  std::int64_t bytes = 0;
  visit_tensors(value, [&](const at::Tensor& tensor) {
    bytes += tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
  });
  return bytes;
}

bool compare_tensors_in_structures(const c10::IValue& a, const c10::IValue& b) {
  if (a.isGenericDict() && b.isGenericDict()) {
    return are_equal_dictionaries(a.toGenericDict(), b.toGenericDict());
  }
  if (!a.isList() || !b.isList()) return false;
  const auto first = a.toListRef();
  const auto second = b.toListRef();
  return std::equal(first.begin(), first.end(), second.begin(), second.end(),
                    are_equal_entries);
}

}  // namespace nfold
