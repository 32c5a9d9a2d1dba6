#include "layout/deepspeed_layout.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace nfold {

DeepSpeedLayout deepspeed_layout(const std::vector<std::int64_t>& numels,
                                 std::int64_t num_ranks, bool round_robin) {
  TORCH_CHECK_VALUE(num_ranks >= 1,
                    "DeepSpeed layout: expected at least one rank but found ",
                    num_ranks);
  DeepSpeedLayout layout;
  layout.param_numels = numels;
  layout.param_offsets.resize(numels.size());
  layout.num_ranks = num_ranks;
  const auto num_bins =
      round_robin ? static_cast<std::size_t>(num_ranks) : std::size_t{1};
  for (std::size_t bin = 0; bin < num_bins; ++bin) {
    for (auto param = bin; param < numels.size(); param += num_bins) {
      layout.order.push_back(param);
    }
  }
  std::int64_t offset = 0;
  for (const auto param : layout.order) {
    TORCH_CHECK_VALUE(numels[param] >= 0,
                      "DeepSpeed layout: expected a count of elements but "
                      "found ",
                      numels[param]);
    layout.param_offsets[param] = offset;
    offset += numels[param];
  }
  const auto alignment = 2 * num_ranks;
  layout.partition_numel =
      (offset + alignment - 1) / alignment * alignment / num_ranks;
  return layout;
}

std::vector<Fragment> deepspeed_fragments(const DeepSpeedLayout& layout,
                                          std::int64_t rank) {
  const FlatRange partition{rank * layout.partition_numel,
                            layout.partition_numel};
  std::vector<Fragment> fragments;
  for (const auto param : layout.order) {
    const auto begin = layout.param_offsets[param];
    const auto common =
        intersection({begin, layout.param_numels[param]}, partition);
    if (common.numel > 0) {
      fragments.push_back({param, common.begin - begin,
                           common.begin - partition.begin, common.numel});
    }
  }
  return fragments;
}

std::int64_t deepspeed_padding(const DeepSpeedLayout& layout,
                               std::int64_t rank) {
  std::int64_t real = 0;
  for (const auto& fragment : deepspeed_fragments(layout, rank)) {
    real += fragment.numel;
  }
  return layout.partition_numel - real;
}

DeepSpeedSecondaryShard deepspeed_secondary_shard(std::int64_t param_numel,
                                                  std::int64_t num_ranks,
                                                  std::int64_t group_size,
                                                  std::int64_t group_rank) {
  TORCH_CHECK_VALUE(param_numel >= 0 && num_ranks > 0 && group_size > 0 &&
                        num_ranks % group_size == 0,
                    "secondary shard of ", param_numel,
                    " elements: expected a group size that divides the ranks, "
                    "but ",
                    num_ranks, " is not divisible by ", group_size);
  TORCH_CHECK_VALUE(group_rank >= 0 && group_rank < group_size,
                    "secondary shard: expected a rank from 0 to ",
                    group_size - 1, " but found ", group_rank);
  const auto primary = (param_numel + num_ranks - 1) / num_ranks;
  const auto numel = primary * (num_ranks / group_size);
  const auto begin = std::min(numel * group_rank, param_numel);
  const auto end = std::min(numel * (group_rank + 1), param_numel);
  return {numel, {begin, end - begin}};
}

}  // namespace nfold
