// File: nfold/quantization_groups.h
//
// In how many groups DeepSpeed quantizes a tensor, for those who compare with
// it or read what it wrote. nfold itself quantizes in blocks of fixed size with
// a shorter one at the end (nfold/quantization.h), so it needs no such count
// and takes any number of elements, on any number of ranks.
//
//   weight_group_count(100000)            // 20 groups of 5000
//   gradient_group_counts(64, 64, 16, 8)  // 64, and 8 for the second stage
//
// Source: DeepSpeed's CUDAQuantizer and all_to_all_quant_reduce.
#pragma once

#include <cstdint>
#include <optional>

namespace nfold {

// Of a weight of so many elements, each group a multiple of 8 and at most 8000
// of them. Raises c10::ValueError where DeepSpeed finds none: for a number
// that is not a positive multiple of 8.
std::int64_t weight_group_count(std::int64_t numel);

struct GradientGroupCounts {
  std::int64_t intra_node = 0;
  std::int64_t inter_node = 0;

  bool operator==(const GradientGroupCounts&) const = default;
};

// Of the gradient of a [rows, columns] parameter. Nothing if DeepSpeed reduces
// it unquantized: unless 2 * world_size divides its elements. Raises
// c10::ValueError unless ranks_per_node divides world_size.
std::optional<GradientGroupCounts> gradient_group_counts(
    std::int64_t rows, std::int64_t columns, std::int64_t world_size,
    std::int64_t ranks_per_node);

}  // namespace nfold
