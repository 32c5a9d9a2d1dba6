#include "optim/grad_norm.h"

#include <ATen/ATen.h>

#include <algorithm>

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

// One sum for each (unit, shard) of units with one shard group, in that order.
std::vector<double> shard_sums(const std::vector<ShardedUnit*>& units) {
  auto& group = *units.front()->options().groups.shard;
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
  const auto* begin = in_unit_order.const_data_ptr<double>();
  return {begin, begin + in_unit_order.numel()};
}

// [sums of rank 0 of the group, of rank 1, ...]
std::vector<double> with_those_of(Group* group, std::vector<double> sums) {
  if (!group || group->size() == 1) return sums;
  const auto count = static_cast<std::int64_t>(sums.size());
  auto table = at::empty({group->size() * count}, at::kDouble);
  auto own = table.narrow(0, group->rank() * count, count);
  std::copy(sums.begin(), sums.end(), own.mutable_data_ptr<double>());
  all_gather(*group, table, own).wait();
  const auto* begin = table.const_data_ptr<double>();
  return {begin, begin + table.numel()};
}

}  // namespace

double global_grad_norm(const std::vector<ShardedUnit*>& units) {
  std::vector<ShardedUnit*> rest = units;
  std::vector<double> sums;
  while (!rest.empty()) {
    const auto groups = rest.front()->options().groups;
    const auto others = std::stable_partition(
        rest.begin(), rest.end(), [&](const ShardedUnit* unit) {
          const auto& own = unit->options().groups;
          return own.shard == groups.shard && own.experts == groups.experts &&
                 own.tensor_parts == groups.tensor_parts;
        });
    auto of_model = with_those_of(
        groups.tensor_parts,
        with_those_of(groups.experts, shard_sums({rest.begin(), others})));
    sums.insert(sums.end(), of_model.begin(), of_model.end());
    rest.erase(rest.begin(), others);
  }
  return norm_of_square_sums(sums);
}

}  // namespace nfold
