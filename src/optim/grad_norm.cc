#include "optim/grad_norm.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "kernels/norm.h"
#include "nfold/collectives.h"

namespace nfold {
namespace {

using kernels::CompensatedSum;
using Sums = std::vector<CompensatedSum>;

// [those of rank 0 of the group, of rank 1, ...]
Sums with_those_of(Group* group, const Sums& sums) {
  if (!group || group->size() == 1) return sums;
  Sums all(sums.size() * static_cast<std::size_t>(group->size()));
  std::copy(
      sums.begin(), sums.end(),
      all.begin() + static_cast<std::ptrdiff_t>(sums.size()) * group->rank());
  const auto count = static_cast<std::int64_t>(2 * sums.size());
  const auto table = at::from_blob(all.data(), {group->size() * count},
                                   at::TensorOptions(at::kDouble));
  all_gather(*group, table, table.narrow(0, group->rank() * count, count))
      .wait();
  return all;
}
static_assert(sizeof(CompensatedSum) == 2 * sizeof(double));

// Of units with the same groups, over all that hold them or others in their
// place.
Sums sums_of(const std::vector<ShardedUnit*>& units) {
  const auto& options = units.front()->options();
  Sums sums;
  for (auto* unit : units) {
    sums.push_back(unit->has_grad()
                       ? kernels::norm_squared(unit->grad()).sum_of_squares
                       : CompensatedSum());
  }
  if (!options.owns_whole_range) {
    sums = with_those_of(options.groups.shard, sums);
  }
  return with_those_of(options.groups.tensor_parts,
                       with_those_of(options.groups.experts, sums));
}

}  // namespace

double global_grad_norm(const std::vector<ShardedUnit*>& units) {
  std::vector<ShardedUnit*> rest = units;
  CompensatedSum total;
  while (!rest.empty()) {
    const auto first = rest.front()->options();
    const auto others = std::stable_partition(
        rest.begin(), rest.end(), [&](const ShardedUnit* unit) {
          const auto& groups = unit->options().groups;
          return unit->options().owns_whole_range == first.owns_whole_range &&
                 groups.shard == first.groups.shard &&
                 groups.experts == first.groups.experts &&
                 groups.tensor_parts == first.groups.tensor_parts;
        });
    for (const auto& sum : sums_of({rest.begin(), others})) total.add(sum);
    rest.erase(rest.begin(), others);
  }
  return std::sqrt(total.value());
}

}  // namespace nfold
