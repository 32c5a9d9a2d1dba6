// File: grad_norm.h
//
// The global L2 norm of all gradients, with the same bits in every stage.
//
// Squares are summed in fp64, first within each shard of each unit, then over
// (unit, shard) in that order, by every rank. Where this rank owns whole units
// (stage 0) it computes the sums of all shards; elsewhere each rank computes
// those of its own, and they are gathered.
//
// Units that are held by the same ranks are summed together. What ranks of
// other groups hold in their place, other experts or other parts of split
// layers, is added once; what is the same there is not added again.
#pragma once

#include <vector>

#include "param/sharded_unit.h"

namespace nfold {

// Of the gradients as accumulated, that is, with the loss scale in them. Not
// finite when any gradient is not. Collective over the groups of the units;
// equal on all their ranks. Units without a gradient count as zero.
double global_grad_norm(const std::vector<ShardedUnit*>& units);

}  // namespace nfold
