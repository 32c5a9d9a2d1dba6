// File: nfold/seeds.h
//
// One seed for all random generators that have a global state.
//
//   nfold::set_random_seed(config_seed);
//
// Generators that are objects (std::mt19937 of a data loader) are seeded by
// whoever makes them. Callable from any thread; the generators are those of
// the process.
#pragma once

#include <cstdint>

namespace nfold {

// Seeds torch's generators on every device with the seed modulo 2^63, and the
// C library's rand() with the seed modulo 2^32: any seed will do.
void set_random_seed(std::uint64_t seed);

}  // namespace nfold
