// File: partition.h
//
// Splits a sequence of items into contiguous parts.
//
//   partition_uniform(10, 3)                {0, 4, 7, 10}
//   partition_balanced({1, 2, 3, 4}, 2)     {0, 3, 4}
//
// Part p is [bounds[p], bounds[p + 1]). Both give exactly the bounds that
// DeepSpeed's functions of these names give, so that a model split there is
// split alike here. Pure functions.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <vector>

namespace nfold {

// Equal item counts; the first (num_items mod num_parts) parts hold one more.
// With fewer items than parts, each of the first num_items parts holds one.
// Returns num_parts + 1 bounds. O(num_parts).
//
// Raises c10::ValueError unless num_items >= 0 and num_parts >= 1.
std::vector<std::int64_t> partition_uniform(std::int64_t num_items,
                                            std::int64_t num_parts);

// Parts whose sums of weights are close: reduces the largest sum minus the
// smallest. Among equally good last cuts the rightmost wins. With no more
// items than parts the weights do not matter: partition_uniform.
//
// Not always the optimum: of each prefix only the best split is extended, by
// its spread, though one with a larger spread may fit a later part better.
//
// Returns num_parts + 1 bounds. O(n^2 p) time and O(n p) memory for n items
// and p parts: meant for the layers of a model, not for its elements.
//
// Raises c10::ValueError unless num_parts >= 1 and every weight is finite.
std::vector<std::int64_t> partition_balanced(c10::ArrayRef<double> weights,
                                             std::int64_t num_parts);

}  // namespace nfold
