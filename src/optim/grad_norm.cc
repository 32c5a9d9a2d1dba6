#include "optim/grad_norm.h"

#include <ATen/ATen.h>

#include "kernels/norm.h"
#include "nfold/collectives.h"
#include "optim/norm_combine.h"

namespace nfold {
namespace {

double sum_of_squares(ShardedUnit& unit, std::int64_t shard) {
  const auto owned = unit.owned_range();
  const auto range = shard_range(unit.layout(), shard);
  return kernels::norm_squared(
             unit.grad().narrow(0, range.begin - owned.begin, range.numel))
      .sum_of_squares;
}

}  // namespace

double global_grad_norm(Group& group, const std::vector<ShardedUnit*>& units) {
  const auto num_units = static_cast<std::int64_t>(units.size());
  const auto num_ranks = static_cast<std::int64_t>(group.size());
  auto table = at::zeros({num_ranks * num_units}, at::kDouble);
  auto* sums = table.mutable_data_ptr<double>();
  bool is_complete = true;
  for (std::int64_t i = 0; i < num_units; ++i) {
    auto& unit = *units[static_cast<std::size_t>(i)];
    if (!unit.has_grad()) continue;
    const bool owns_all = unit.options().owns_whole_range;
    is_complete = is_complete && owns_all;
    for (std::int64_t shard = 0; shard < num_ranks; ++shard) {
      if (owns_all || shard == group.rank()) {
        sums[shard * num_units + i] = sum_of_squares(unit, shard);
      }
    }
  }
  if (!is_complete) {
    all_gather(group, table,
               table.narrow(0, group.rank() * num_units, num_units))
        .wait();
  }
  const auto in_unit_order =
      table.view({num_ranks, num_units}).t().contiguous();
  return norm_of_square_sums({in_unit_order.const_data_ptr<double>(),
                              static_cast<std::size_t>(in_unit_order.numel())});
}

}  // namespace nfold
