// File: nfold/tensor_structure.h
//
// Tensors in nested structures (lists, tuples and dictionaries of an IValue):
// brought to a device, counted in bytes, compared.
//
//   c10::IValue batch = ...;                       // {"ids": ..., "mask": ...}
//   batch = nfold::move_to_device(batch, device);
//   std::int64_t bytes = nfold::get_tensor_bytes(batch);
//
// Values that are no tensors are left as they are. A tensor converts to an
// IValue by itself. Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>

namespace nfold {

using TensorCriterion = std::function<bool(const at::Tensor&)>;

// The value with those of its tensors that meet the criterion on `device`.
// Others are the same tensors; containers that hold tensors are new ones.
c10::IValue copy_to_device(const c10::IValue& value, c10::Device device,
                           const TensorCriterion& criterion);

// As copy_to_device, but tensors that meet the criterion stay the same objects
// and get their storage exchanged, so that everyone who holds them sees them
// move; all others are new tensors on `device`. Without a criterion all are
// new. Not for parameters of an Engine, which are views of its storages.
c10::IValue move_to_device(const c10::IValue& value, c10::Device device,
                           const TensorCriterion& criterion = {});

// Elements times element size, over all tensors; views are counted as often
// as they occur.
std::int64_t get_tensor_bytes(const c10::IValue& value);

// Whether two lists or two dictionaries have the same length or keys and equal
// entries: tensors of the same dtype, shape and elements, on any device, and
// equal values of other types. Entries that are containers of tensors are not
// looked into: equal if they are the same object. False for anything else than
// two lists or two dictionaries.
bool compare_tensors_in_structures(const c10::IValue& a, const c10::IValue& b);

}  // namespace nfold
