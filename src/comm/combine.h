// File: combine.h
//
// What a reduction makes of the contributions of all ranks, wherever they lie.
//
//   combine(call, flat.dtype, output, by_rank, num_bytes, scratch);
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/collectives_call.h"
#include "comm/scratch.h"
#include "kernels/streaming.h"

namespace nfold {

// output <- the sum or maximum over ranks, as call.op says, in rank order
// (kernels/sum_tree.h). Each contribution has num_bytes of elements of the
// dtype; one that is null is zeros. `output` may be one of them. `stores`: how
// the output is written, as part of whatever is reduced in all.
void combine(const CollectiveCall& call, c10::ScalarType dtype,
             std::byte* output, const std::vector<const std::byte*>& by_rank,
             std::int64_t num_bytes, Scratch& scratch,
             kernels::Stores stores = kernels::Stores::kCached);

}  // namespace nfold
