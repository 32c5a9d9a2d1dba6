#include "train/rank_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>

#include "nfold/cores.h"

namespace nfold::train {

void divide_cores(const World& world) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  at::set_num_threads(std::max(1, usable_cores() / world.local_size()));
}

}  // namespace nfold::train
