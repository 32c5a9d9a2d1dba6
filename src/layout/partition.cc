#include "nfold/partition.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nfold/errors.h"

namespace nfold {
namespace {

void check_num_parts(std::int64_t num_parts) {
  TORCH_CHECK_VALUE(num_parts >= 1,
                    "partition: expected at least 1 part, found ", num_parts);
}

// The split of a prefix of the items that was found best.
struct Split {
  double largest = 0;
  double smallest = std::numeric_limits<double>::infinity();
  std::int64_t last_cut = 0;  // where its last part begins

  double spread() const { return largest - smallest; }
};

// `split` with one more part, [cut, ...), of the given sum.
Split extended(const Split& split, std::int64_t cut, double sum) {
  return {std::max(split.largest, sum), std::min(split.smallest, sum), cut};
}

}  // namespace

std::vector<std::int64_t> partition_uniform(std::int64_t num_items,
                                            std::int64_t num_parts) {
  check_num_parts(num_parts);
  TORCH_CHECK_VALUE(num_items >= 0,
                    "partition: expected 0 items or more, found ", num_items);
  const std::int64_t size = num_items / num_parts;
  const std::int64_t num_larger = num_items % num_parts;
  std::vector<std::int64_t> bounds;
  bounds.reserve(num_parts + 1);
  for (std::int64_t part = 0; part <= num_parts; ++part) {
    bounds.push_back(part * size + std::min(part, num_larger));
  }
  return bounds;
}

std::vector<std::int64_t> partition_balanced(c10::ArrayRef<double> weights,
                                             std::int64_t num_parts) {
  check_num_parts(num_parts);
  const auto num_items = static_cast<std::int64_t>(weights.size());
  std::vector<double> sums(num_items + 1, 0.0);  // of the first i weights
  for (std::int64_t i = 0; i < num_items; ++i) {
    TORCH_CHECK_VALUE(std::isfinite(weights[i]),
                      "partition: expected finite weights, found ", weights[i],
                      " for item ", i);
    sums[i + 1] = sums[i] + weights[i];
  }
  if (num_items <= num_parts) return partition_uniform(num_items, num_parts);

  // best[j][i]: the first i items in j parts, none of them empty.
  std::vector<std::vector<Split>> best(num_parts + 1,
                                       std::vector<Split>(num_items + 1));
  for (std::int64_t j = 1; j <= num_parts; ++j) {
    for (std::int64_t i = j; i <= num_items; ++i) {
      // The last part begins at `cut`; what precedes it has j - 1 parts.
      const std::int64_t first_cut = j - 1;
      const std::int64_t last_cut = j == 1 ? 0 : i - 1;
      for (std::int64_t cut = first_cut; cut <= last_cut; ++cut) {
        const Split found =
            extended(best[j - 1][cut], cut, sums[i] - sums[cut]);
        if (cut == first_cut || found.spread() <= best[j][i].spread()) {
          best[j][i] = found;
        }
      }
    }
  }

  std::vector<std::int64_t> bounds(num_parts + 1, 0);
  bounds[num_parts] = num_items;
  for (std::int64_t j = num_parts; j >= 1; --j) {
    bounds[j - 1] = best[j][bounds[j]].last_cut;
  }
  return bounds;
}

std::int64_t padding_numel(std::int64_t numel, std::int64_t alignment) {
  TORCH_CHECK_VALUE(numel >= 0 && alignment >= 1,
                    "padding_numel: expected 0 elements or more and an "
                    "alignment of at least 1, found ",
                    numel, " and ", alignment);
  return (alignment - numel % alignment) % alignment;
}

std::vector<GatherPiece> plan_gather_pieces(std::int64_t part_numel,
                                            std::int64_t num_ranks,
                                            std::int64_t bucket_numel,
                                            std::int64_t alignment) {
  TORCH_CHECK_VALUE(
      part_numel >= 0 && num_ranks >= 1 && bucket_numel >= 1 && alignment >= 1,
      "plan_gather_pieces: expected 0 elements or more, and at least 1 rank, "
      "bucket "
      "element and alignment, found ",
      part_numel, ", ", num_ranks, ", ", bucket_numel, " and ", alignment);
  const auto num_pieces =
      std::max<std::int64_t>(1, part_numel * num_ranks / bucket_numel);
  auto size = part_numel / num_pieces;
  size -= size % alignment;
  std::vector<GatherPiece> pieces;
  for (std::int64_t i = 0; i < num_pieces; ++i)
    pieces.push_back({i * size, size});
  pieces.back().numel = part_numel - pieces.back().begin;
  return pieces;
}

}  // namespace nfold
