// File: c10d_pair_test.h
//
// A backend of nfold beside torch's over gloo, of the same ranks, for tests
// that compare them.
//
//   run_pairs(3, [](World& world, c10d::Backend& ours, c10d::Backend& gloo) {
//     EXPECT_TRUE(at::equal(sum_over(ours), sum_over(gloo)));
//   });
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <numeric>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <vector>

#include "comm/gloo_backend.h"
#include "nfold/c10d_backend.h"
#include "testing/thread_world.h"

namespace nfold {

using BackendPointer = c10::intrusive_ptr<c10d::Backend>;

inline std::vector<int> all_ranks(const World& world) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

inline BackendPointer make_own_backend(const World& world) {
  return make_c10d_backend(world.new_group("c10d", all_ranks(world)));
}

// At least two ranks, as threads.
inline void run_pairs(int num_ranks,
                      const std::function<void(World&, const BackendPointer&,
                                               const BackendPointer&)>& body) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  run_ranks(num_ranks, [&](World& world) {
    const auto gloo = make_gloo_backend(
        c10::make_intrusive<c10d::PrefixStore>("torch", store), world.rank(),
        world.size(), std::chrono::seconds(30), "lo");
    body(world, make_own_backend(world), gloo);
  });
}

// Small integers, unlike on each rank, whose sums every dtype holds exactly.
inline at::Tensor small_values(int rank, std::int64_t numel,
                               at::ScalarType dtype = at::kFloat) {
  return (at::arange(numel, at::kLong) * 7 + rank * 3).remainder(5).to(dtype);
}

// As the tensor, flat, with its elements apart in memory.
inline at::Tensor strided(const at::Tensor& tensor) {
  auto wide = at::zeros({tensor.numel(), 2}, tensor.options());
  auto view = wide.select(1, 0);
  view.copy_(tensor.view(-1));
  EXPECT_FALSE(tensor.numel() > 1 && view.is_contiguous());
  return view;
}

}  // namespace nfold
