// File: unit_layout.h
//
// Where the parameters of a unit lie in its flat range, and which part of
// that range each rank owns. Pure arithmetic; no tensors.
//
//   auto layout = make_unit_layout({5, 3, 4}, /*item_bytes=*/4, /*shards=*/2);
//   layout.param_offsets   // 0, 16, 32: every parameter on 64 bytes
//   layout.shard_numel     // 32
//   fragments_in(layout, shard_range(layout, 1))   // parameter 2 at 0
//
// The flat range is [0, shards * shard_numel). What lies between and behind
// the parameters is residue, always zero. The shard of rank r is
// [r * shard_numel, (r + 1) * shard_numel). Both rules hold in every stage,
// so that all stages see the same addresses: some matrix kernels change bits
// with the alignment of their operands.
#pragma once

#include <cstdint>
#include <vector>

namespace nfold {

// Every parameter and every shard starts at a multiple of this.
inline constexpr std::int64_t kAlignmentBytes = 64;

// Elements [begin, begin + numel).
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t numel = 0;

  std::int64_t end() const { return begin + numel; }
  bool operator==(const FlatRange&) const = default;
};

// The common part; numel 0 when there is none.
FlatRange intersection(const FlatRange& a, const FlatRange& b);

struct UnitLayout {
  std::vector<std::int64_t> param_offsets;  // elements from the unit's start
  std::vector<std::int64_t> param_numels;
  std::int64_t num_shards = 1;
  std::int64_t shard_numel = 0;
  std::int64_t alignment_numel = 1;

  std::int64_t numel() const { return num_shards * shard_numel; }
  FlatRange param_range(std::size_t param) const {
    return {param_offsets[param], param_numels[param]};
  }
};

// numels: elements of each parameter, in order; zero is fine. item_bytes:
// bytes of one element, a power of two up to 64. Raises c10::ValueError for a
// negative count or num_shards < 1.
UnitLayout make_unit_layout(const std::vector<std::int64_t>& numels,
                            std::int64_t item_bytes, std::int64_t num_shards);

FlatRange shard_range(const UnitLayout& layout, std::int64_t shard);

// The part of one parameter inside a range of its unit.
struct Fragment {
  std::size_t param = 0;         // index in the unit
  std::int64_t param_begin = 0;  // first element within the parameter
  std::int64_t range_begin = 0;  // the same element within the range
  std::int64_t numel = 0;

  bool operator==(const Fragment&) const = default;
};

// In order of address; parameters without an element in the range are left
// out.
std::vector<Fragment> fragments_in(const UnitLayout& layout,
                                   const FlatRange& range);

// That of one parameter; numel 0 when it has no element in the range.
Fragment fragment_in(const UnitLayout& layout, const FlatRange& range,
                     std::size_t param);

// What of the range belongs to no parameter, in order of address.
std::vector<FlatRange> residues_in(const UnitLayout& layout,
                                   const FlatRange& range);

}  // namespace nfold
