// File: sample_order.h
//
// Seeded random numbers and permutations that are pure functions of their
// arguments: nothing is stored and nothing has to be saved to resume.
//
//   SampleOrder order(num_samples, seed);
//   order.sample(epoch, position);
//
// Callable from any thread. Not for cryptography.
#pragma once

#include <cstdint>

namespace nfold::train {

// A well-mixed 64-bit number for each pair of arguments.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index);

// A number in [0, limit), limit > 0. Uniform up to limit / 2^64.
std::uint64_t random_below(std::uint64_t seed, std::uint64_t index,
                           std::uint64_t limit);

class SampleOrder {
 public:
  // num_samples >= 1.
  SampleOrder(std::int64_t num_samples, std::uint64_t seed);

  // The sample at this position of the epoch. For each epoch, positions 0 to
  // num_samples - 1 give each sample once.
  std::int64_t sample(std::int64_t epoch, std::int64_t position) const;

 private:
  std::uint64_t num_samples_;
  std::uint64_t seed_;
  int half_bits_ = 1;
};

}  // namespace nfold::train
