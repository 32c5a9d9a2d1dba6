// File: nfold/cores.h
//
// How many cores this process may run on.
//
//   at::set_num_threads(usable_cores() / world.local_size());
//
// Callable from any thread.
#pragma once

namespace nfold {

// Those that the system's affinity mask allows, at least 1. Quotas on processor
// time (of cgroups) are not counted.
int usable_cores();

}  // namespace nfold
