// File: nfold/dp_gather.h
//
// Completes flat buffers of which every rank of a data-parallel group has
// updated its own part: the last act of a step with a sharded optimizer.
//
//   nfold::all_gather_dp_groups({{flat_dense, &data}, {flat_experts,
//   &expert}});
//
// An Engine does this by itself. Collective over every group given.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <vector>

#include "nfold/group.h"

namespace nfold {

struct FlatGroup {
  // [N * S], contiguous; rank r of the group has updated [r * S, (r + 1) * S).
  at::Tensor flat;
  Group* group = nullptr;
};

struct DpGatherOptions {
  // Elements that a collective moves, about, in all (see plan_gather_pieces in
  // partition.h); bounds the size of messages at the cost of a copy of each
  // piece. 0: each flat buffer in one collective, which copies nothing.
  std::int64_t bucket_numel = 0;
  // Of where a piece begins in a part, in elements.
  std::int64_t start_alignment = 1;
};

// Returns when all parts of all buffers are there. Groups of one rank are
// skipped. Raises c10::ValueError, before anything is sent, for a buffer that
// does not divide into equal parts.
void all_gather_dp_groups(const std::vector<FlatGroup>& groups,
                          const DpGatherOptions& options = {});

}  // namespace nfold
