// File: grad_norm.h
//
// The global L2 norm of all gradients, with the same bits in every stage and
// however they are sharded: squares are exact and added without loss
// (kernels/compensated_sum.h).
//
// Each rank sums what it owns, and the sums are gathered. Where every rank owns
// whole units (stage 0) they are not. What ranks of other groups hold in the
// place of a unit, other experts or other parts of split layers, is added
// once; what is the same there is not added again.
#pragma once

#include <vector>

#include "param/sharded_unit.h"

namespace nfold {

// Of the gradients as accumulated, that is, with the loss scale in them. Not
// finite when any gradient is not. Collective over the groups of the units;
// equal on all their ranks. Units without a gradient count as zero.
double global_grad_norm(const std::vector<ShardedUnit*>& units);

}  // namespace nfold
