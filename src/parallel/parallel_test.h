// File: parallel_test.h
//
// What the tests of split layers have in common: values without random
// numbers, modules with equal ones, and comparison with the unsplit twin.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <mutex>
#include <utility>

#include "nfold/tensor_parallel.h"

namespace nfold {

// The same on every rank, unlike for each seed.
inline at::Tensor waves(at::IntArrayRef sizes, int seed) {
  const auto numel = c10::multiply_integers(sizes);
  return (at::arange(numel, at::kDouble) * 0.7 + seed * 1.3)
      .sin()
      .to(at::kFloat)
      .view(sizes);
}

inline std::mutex random_state_mutex;

// Calls `make` with torch's random state set. Ranks that are threads share
// that state, so one at a time.
template <typename Make>
auto seeded(Make&& make) {
  const std::lock_guard lock(random_state_mutex);
  at::manual_seed(5);
  return std::forward<Make>(make)();
}

// Within the rounding of fp32 sums, measured by the largest element.
inline void expect_close(const at::Tensor& found, const at::Tensor& expected,
                         double tolerance = 2e-6) {
  ASSERT_TRUE(found.defined());
  ASSERT_EQ(found.sizes(), expected.sizes());
  EXPECT_LE((found - expected).abs().max().item<double>(),
            tolerance * expected.abs().max().item<double>())
      << found << " instead of " << expected;
}

// The gradient of every parameter is that of the same one of the unsplit
// module, or this rank's part of it.
inline void expect_same_gradients(Group* group, const torch::nn::Module& split,
                                  const torch::nn::Module& whole,
                                  double tolerance = 2e-6) {
  const auto expected = whole.named_parameters();
  for (const auto& item : split.named_parameters()) {
    SCOPED_TRACE(item.key());
    auto grad = expected[item.key()].grad();
    if (const auto cut = split_of(split, item.key())) {
      grad = part_of(group, grad, *cut);
    }
    expect_close(item.value().grad(), grad, tolerance);
  }
}

}  // namespace nfold
