// File: nfold/partition.h
//
// Splits a sequence of items into contiguous parts, and the arithmetic on
// counts of elements that goes with it.
//
//   nfold::partition_uniform(10, 3)              {0, 4, 7, 10}
//   nfold::partition_balanced({1, 2, 3, 4}, 2)   {0, 3, 4}
//   nfold::prefix_sum_inc<int>({3, 4, 5})        {3, 7, 12}
//   nfold::padding_numel(7, 4)                   1
//
// Part p is [bounds[p], bounds[p + 1]). Both partitions give exactly the bounds
// that DeepSpeed's functions of these names give, so that a model split there
// is split alike here. Pure functions.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <numeric>
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

// Element i is the sum of the first i + 1 values.
template <typename Number>
std::vector<Number> prefix_sum_inc(std::vector<Number> values) {
  std::partial_sum(values.begin(), values.end(), values.begin());
  return values;
}

// The fewest elements that make `numel` a multiple of `alignment`. For two
// alignments at once give their std::lcm.
//
// Raises c10::ValueError unless numel >= 0 and alignment >= 1.
std::int64_t padding_numel(std::int64_t numel, std::int64_t alignment);

// Elements of a part that travel in one collective.
struct GatherPiece {
  std::int64_t begin = 0;
  std::int64_t numel = 0;

  bool operator==(const GatherPiece&) const = default;
};

// Splits a part of `part_numel` elements, of which each of `num_ranks` ranks
// has one, so that a collective moves about `bucket_numel` elements in all:
// max(1, part_numel * num_ranks / bucket_numel) pieces of equal size, rounded
// down to a multiple of `alignment`; the last one takes the rest. With a part
// that is short beside its alignment all but the last may be empty.
//
// Raises c10::ValueError unless part_numel >= 0 and the others are >= 1.
std::vector<GatherPiece> plan_gather_pieces(std::int64_t part_numel,
                                            std::int64_t num_ranks,
                                            std::int64_t bucket_numel,
                                            std::int64_t alignment);

}  // namespace nfold
