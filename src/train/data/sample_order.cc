#include "train/data/sample_order.h"

#include "nfold/errors.h"

namespace nfold::train {
namespace {

constexpr int kRounds = 6;

// The finalizer of splitmix64: every input bit changes about half of the
// output bits.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index) {
  constexpr std::uint64_t kGoldenRatio = 0x9E3779B97F4A7C15ULL;
  return mix(mix(seed + kGoldenRatio) + (index + 1) * kGoldenRatio);
}

std::uint64_t random_below(std::uint64_t seed, std::uint64_t index,
                           std::uint64_t limit) {
  const auto product =
      static_cast<unsigned __int128>(random_bits(seed, index)) * limit;
  return static_cast<std::uint64_t>(product >> 64);
}

SampleOrder::SampleOrder(std::int64_t num_samples, std::uint64_t seed)
    : num_samples_(static_cast<std::uint64_t>(num_samples)), seed_(seed) {
  TORCH_CHECK_VALUE(num_samples >= 1,
                    "SampleOrder: expected at least one sample but found ",
                    num_samples);
  while (half_bits_ < 31 && (1ULL << (2 * half_bits_)) < num_samples_) {
    ++half_bits_;
  }
}

// A Feistel network permutes all numbers of 2 * half_bits_ bits, whatever its
// round function is. At most three of four lie beyond num_samples; from there
// one walks on along the cycle, which must lead back below it.
std::int64_t SampleOrder::sample(std::int64_t epoch,
                                 std::int64_t position) const {
  const std::uint64_t key =
      random_bits(seed_, static_cast<std::uint64_t>(epoch));
  const std::uint64_t mask = (1ULL << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t next =
          left ^ (random_bits(key + round, right) & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= num_samples_);
  return static_cast<std::int64_t>(value);
}

}  // namespace nfold::train
