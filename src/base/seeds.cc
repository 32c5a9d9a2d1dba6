#include "nfold/seeds.h"

#include <ATen/Context.h>

#include <cstdlib>

namespace nfold {

void set_random_seed(std::uint64_t seed) {
  std::srand(static_cast<unsigned>(seed & 0xffff'ffffU));
  // Python's torch takes signed seeds only; so the numbers are the same there.
  at::manual_seed(seed & (~std::uint64_t{0} >> 1));
}

}  // namespace nfold
