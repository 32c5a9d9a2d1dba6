// File: gather_table.h
//
// A few numbers of every rank, on every rank: for what ranks compare or agree
// on before they communicate in earnest.
//
//   const auto table = gather_table(group, {hash, length});
//   const auto cells = table.accessor<std::int64_t, 2>();   // [rank][i]
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <vector>

#include "nfold/group.h"

namespace nfold {

// int64 [ranks][values.size()], the same on every rank. Collective, with
// equally many values on all ranks.
at::Tensor gather_table(Group& group, const std::vector<std::int64_t>& values);

}  // namespace nfold
