// File: all_to_all_parts.h
//
// An all-to-all of parts of any length, of which each rank knows only its own:
// what torch's alltoall takes.
//
//   // parts_to[i] goes to rank i, parts_from[i] comes from there
//   all_to_all_parts(group, parts_from, parts_to).wait();
//
// Two steps, as one collective: an all-gather of all lengths, 16 N bytes of
// each rank, then an all-to-all of parts padded to the longest of any rank,
// through two buffers of N times that length.
#pragma once

#include <ATen/core/TensorBody.h>

#include <vector>

#include "nfold/collectives.h"

namespace nfold {

// outputs[i] <- inputs[rank] of rank i; one of each for every rank, contiguous
// CPU tensors of one dtype. Outputs must not overlap inputs. Raises as the
// functions of nfold/collectives.h; lengths that do not match are an error on
// every rank that names both ranks.
Pending all_to_all_parts(Group& group, std::vector<at::Tensor> outputs,
                         std::vector<at::Tensor> inputs);

}  // namespace nfold
