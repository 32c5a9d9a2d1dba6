#include "engine/param_pieces.h"

#include <ATen/ATen.h>

#include "nfold/collectives.h"

namespace nfold {

Fragment owned_piece(const ShardedUnit& unit, std::size_t param) {
  return fragment_in(unit.layout(), unit.owned_range(), param);
}

at::Tensor gather_pieces(const ShardedUnit& unit, std::size_t param,
                         const at::Tensor& own_piece) {
  auto full =
      at::empty({unit.layout().param_range(param).numel}, own_piece.options());
  const auto mine = owned_piece(unit, param);
  full.narrow(0, mine.param_begin, mine.numel).copy_(own_piece);
  if (unit.options().owns_whole_range) return full;
  for (int rank = 0; rank < unit.options().num_shards; ++rank) {
    const auto theirs =
        fragment_in(unit.layout(), shard_range(unit.layout(), rank), param);
    if (theirs.numel == 0) continue;
    broadcast(*unit.options().groups.shard,
              full.narrow(0, theirs.param_begin, theirs.numel), rank)
        .wait();
  }
  return full;
}

}  // namespace nfold
