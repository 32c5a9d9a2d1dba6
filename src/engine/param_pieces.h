// File: param_pieces.h
//
// A parameter as the pieces that the ranks own of it.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstddef>

#include "param/sharded_unit.h"

namespace nfold {

// Where the piece of this rank lies; all of the parameter where every rank
// owns everything.
Fragment owned_piece(const ShardedUnit& unit, std::size_t param);

// The parameter's elements, [numel], of which every rank gives its own piece,
// [owned_piece numel]; bit for bit. Collective over the unit's shard group.
at::Tensor gather_pieces(const ShardedUnit& unit, std::size_t param,
                         const at::Tensor& own_piece);

}  // namespace nfold
