// File: gather_table.h
//
// A few numbers, or a text, of every rank on every rank: for what ranks compare
// or agree on before they communicate in earnest, and for errors.
//
//   const auto table = gather_table(group, {hash, length});
//   const auto cells = table.accessor<std::int64_t, 2>();   // [rank][i]
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nfold/group.h"

namespace nfold {

// int64 [ranks][values.size()], the same on every rank. Collective, with
// equally many values on all ranks.
at::Tensor gather_table(Group& group, const std::vector<std::int64_t>& values);

// The text of each rank, cut after max_bytes and before the first zero byte;
// the same on every rank. Collective, with one max_bytes.
std::vector<std::string> gather_texts(Group& group, const std::string& own,
                                      std::int64_t max_bytes);

}  // namespace nfold
