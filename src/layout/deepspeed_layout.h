// File: deepspeed_layout.h
//
// How DeepSpeed's ZeRO stages 1 and 2 lay a parameter group out: parameters
// one behind the other without gaps, the flat range padded at its end to a
// multiple of 2 x ranks elements and cut into equal partitions. nfold's own
// layout is unit_layout.h; this one exists to read and write DeepSpeed's
// checkpoints. Pure arithmetic.
//
//   auto layout = deepspeed_layout({5, 3, 4}, 2);
//   layout.partition_numel                     // 6
//   deepspeed_fragments(layout, 1)             // parts of parameters 1 and 2
//
// Source: DeepSpeed's stage 1 and 2 optimizer (Rajbhandari et al., ZeRO,
// 2020).
#pragma once

#include <cstdint>
#include <vector>

#include "layout/unit_layout.h"

namespace nfold {

struct DeepSpeedLayout {
  // order[i]: which of the caller's parameters is the i-th in the flat range.
  std::vector<std::size_t> order;
  // Indexed by the caller's parameter, like the numels given.
  std::vector<std::int64_t> param_offsets;
  std::vector<std::int64_t> param_numels;
  std::int64_t num_ranks = 1;
  std::int64_t partition_numel = 0;

  std::int64_t numel() const { return num_ranks * partition_numel; }
};

// round_robin: parameter i goes to bin i mod ranks, and the bins stand one
// behind the other (round_robin_gradients). Raises c10::ValueError for a
// negative count or num_ranks < 1.
DeepSpeedLayout deepspeed_layout(const std::vector<std::int64_t>& numels,
                                 std::int64_t num_ranks,
                                 bool round_robin = false);

// What of each parameter lies in a rank's partition, in order of address;
// Fragment::param is the caller's index.
std::vector<Fragment> deepspeed_fragments(const DeepSpeedLayout& layout,
                                          std::int64_t rank);

// Elements of the rank's partition that are padding.
std::int64_t deepspeed_padding(const DeepSpeedLayout& layout,
                               std::int64_t rank);

// Of one parameter at stage 3 with hpZ: its elements in the secondary shard of
// a rank.
struct DeepSpeedSecondaryShard {
  std::int64_t numel = 0;  // of the shard, with zeros behind `range`
  FlatRange range;         // of the parameter
};

// The parameter padded to a multiple of num_ranks and cut into group_size
// shards; group_rank is the rank in its secondary group. So a secondary shard
// is num_ranks / group_size primary ones. Raises c10::ValueError for a negative
// count, a group_size that does not divide num_ranks and a rank outside of it.
// Source: ZeRO++.
DeepSpeedSecondaryShard deepspeed_secondary_shard(std::int64_t param_numel,
                                                  std::int64_t num_ranks,
                                                  std::int64_t group_size,
                                                  std::int64_t group_rank);

}  // namespace nfold
