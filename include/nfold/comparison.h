// File: nfold/comparison.h
//
// Numbers that are nearly equal, and items that must all be.
//
//   nfold::isclose(norm, expected);
//   int size = nfold::get_only_unique_item(sizes_on_all_ranks);
//
// Tensors within lists and dictionaries are compared in tensor_structure.h.
// Pure functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <ranges>

#include "nfold/errors.h"

namespace nfold {

// |a - b| <= max(rel_tol * max(|a|, |b|), abs_tol). False with a NaN.
inline bool isclose(double a, double b, double rel_tol = 1e-9,
                    double abs_tol = 0) {
  if (a == b) return true;  // infinities too
  if (std::isinf(a) || std::isinf(b)) return false;
  const double larger = std::max(std::abs(a), std::abs(b));
  return std::abs(a - b) <= std::max(rel_tol * larger, abs_tol);
}

// The item that all items of the range equal. Takes any range, views that can
// be read only once included. Raises c10::ValueError if there is none, or one
// that differs.
template <std::ranges::input_range Range>
std::ranges::range_value_t<Range> get_only_unique_item(Range&& items) {
  auto item = std::ranges::begin(items);
  TORCH_CHECK_VALUE(item != std::ranges::end(items),
                    "get_only_unique_item: expected at least one item");
  std::ranges::range_value_t<Range> first = *item;
  std::size_t index = 0;
  for (++item; item != std::ranges::end(items); ++item) {
    ++index;
    TORCH_CHECK_VALUE(*item == first,
                      "get_only_unique_item: expected all "
                      "items to be equal but item ",
                      index, " differs from the first");
  }
  return first;
}

}  // namespace nfold
