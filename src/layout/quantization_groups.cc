#include "nfold/quantization_groups.h"

#include <algorithm>

#include "nfold/errors.h"
#include "nfold/rank_lists.h"

namespace nfold {

std::int64_t weight_group_count(std::int64_t numel) {
  constexpr std::int64_t kMaxGroupNumel = 8000;
  constexpr std::int64_t kMultiple = 8;
  TORCH_CHECK_VALUE(
      numel > 0 && numel % kMultiple == 0,
      "weight_group_count: expected a positive multiple of 8 elements but "
      "found ",
      numel, "; blocks (nfold/quantization.h) take any number");
  auto groups = (numel + kMaxGroupNumel - 1) / kMaxGroupNumel;
  // Ends: numel / 8 groups of 8 fit.
  while (numel % (kMultiple * groups) != 0) ++groups;
  return groups;
}

std::optional<GradientGroupCounts> gradient_group_counts(
    std::int64_t rows, std::int64_t columns, std::int64_t world_size,
    std::int64_t ranks_per_node) {
  check_divisible(world_size, ranks_per_node, "gradient_group_counts");
  if (rows * columns % (2 * world_size) != 0) return std::nullopt;
  const auto intra_node = std::max({rows, columns, world_size});
  return GradientGroupCounts{intra_node, intra_node / ranks_per_node};
}

}  // namespace nfold
