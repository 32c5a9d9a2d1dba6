#include "train/rank_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

namespace nfold::train {

void divide_cores(const World& world) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  const int num_cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  at::set_num_threads(std::max(1, num_cores / world.local_size()));
}

}  // namespace nfold::train
