#include "layout/unit_layout.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace nfold {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

FlatRange intersection(const FlatRange& a, const FlatRange& b) {
  const auto begin = std::max(a.begin, b.begin);
  const auto end = std::min(a.end(), b.end());
  return {begin, std::max<std::int64_t>(0, end - begin)};
}

UnitLayout make_unit_layout(const std::vector<std::int64_t>& numels,
                            std::int64_t item_bytes, std::int64_t num_shards) {
  TORCH_CHECK_VALUE(num_shards >= 1,
                    "unit layout: expected at least one shard but found ",
                    num_shards);
  TORCH_CHECK_VALUE(item_bytes > 0 && kAlignmentBytes % item_bytes == 0,
                    "unit layout: expected elements of a power of two up to ",
                    kAlignmentBytes, " bytes but found ", item_bytes);
  UnitLayout layout;
  layout.num_shards = num_shards;
  layout.alignment_numel = kAlignmentBytes / item_bytes;
  layout.param_numels = numels;
  std::int64_t offset = 0;
  for (const auto numel : numels) {
    TORCH_CHECK_VALUE(numel >= 0,
                      "unit layout: expected a count of elements but found ",
                      numel);
    layout.param_offsets.push_back(offset);
    offset = round_up(offset + numel, layout.alignment_numel);
  }
  layout.shard_numel =
      round_up(offset, num_shards * layout.alignment_numel) / num_shards;
  return layout;
}

FlatRange shard_range(const UnitLayout& layout, std::int64_t shard) {
  return {shard * layout.shard_numel, layout.shard_numel};
}

Fragment fragment_in(const UnitLayout& layout, const FlatRange& range,
                     std::size_t param) {
  const auto common = intersection(layout.param_range(param), range);
  if (common.numel == 0) return {param, 0, 0, 0};
  return {param, common.begin - layout.param_offsets[param],
          common.begin - range.begin, common.numel};
}

std::vector<Fragment> fragments_in(const UnitLayout& layout,
                                   const FlatRange& range) {
  std::vector<Fragment> fragments;
  for (std::size_t param = 0; param < layout.param_offsets.size(); ++param) {
    const auto fragment = fragment_in(layout, range, param);
    if (fragment.numel > 0) fragments.push_back(fragment);
  }
  return fragments;
}

std::vector<FlatRange> residues_in(const UnitLayout& layout,
                                   const FlatRange& range) {
  std::vector<FlatRange> residues;
  auto position = range.begin;
  for (const auto& fragment : fragments_in(layout, range)) {
    const auto begin = range.begin + fragment.range_begin;
    if (begin > position) residues.push_back({position, begin - position});
    position = begin + fragment.numel;
  }
  if (range.end() > position) {
    residues.push_back({position, range.end() - position});
  }
  return residues;
}

}  // namespace nfold
