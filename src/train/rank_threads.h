// File: rank_threads.h
//
// How many threads a rank computes with.
//
//   const World world = World::from_environment();
//   divide_cores(world);
#pragma once

#include "nfold/world.h"

namespace nfold::train {

// Ranks that share a machine share its cores; launchers of others' make often
// leave each rank all of them. OMP_NUM_THREADS, if it is set, stays. Sets the
// number of the whole process.
void divide_cores(const World& world);

}  // namespace nfold::train
