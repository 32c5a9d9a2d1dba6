// File: operator_traits.h
//
// What an operator does to its tensor arguments, as far as its schema, its tags
// and its registered kernels tell.
//
//   const nfold::OperatorTraits& traits = nfold::operator_traits(op);
//   if (traits.is_random) ...
//
// Thread-safe; computed once for each operator.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstddef>
#include <optional>
#include <vector>

namespace nfold {

struct OperatorTraits {
  // Made of other operators, which pass the dispatcher one by one. Such a one
  // may view or copy, and may read values in between.
  bool is_composite = false;
  // Returns views of its arguments and touches no element.
  bool is_view = false;
  // Changes sizes, strides or the storage of an argument, but no element.
  bool changes_metadata = false;
  // The above, where the storage may have to grow for it.
  bool resizes = false;
  // Draws from a random generator.
  bool is_random = false;
  // Has at least one tensor, or list of tensors, among its results.
  bool returns_tensors = false;
  // Gives every element of the arguments it writes a new value, and does not
  // depend on the old ones.
  bool overwrites = false;
  // Makes a tensor of zeros, or one whose values nobody may rely on.
  bool makes_zeros = false;
  // Looks at the arguments' identity and not at their values.
  bool compares_identity = false;
  // Arguments whose elements it changes.
  std::vector<std::size_t> written;
  // Where its schema has an argument of this name.
  std::optional<std::size_t> dtype;
  std::optional<std::size_t> layout;
  std::optional<std::size_t> device;
  std::optional<std::size_t> pin_memory;
  std::optional<std::size_t> generator;

  bool writes(std::size_t argument) const;
};

const OperatorTraits& operator_traits(const c10::OperatorHandle& op);

}  // namespace nfold
