// File: construction_test.h
//
// For tests of deferred construction: builds the same thing eagerly and
// deferred, and compares every bit of what comes out, the random generator
// included.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "param/deferred_construction.h"

namespace nfold {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Parameters, then buffers.
inline NamedTensors tensors_of_module(const torch::nn::Module& module) {
  NamedTensors result;
  for (const auto& item : module.named_parameters()) {
    result.emplace_back(item.key(), item.value());
  }
  for (const auto& item : module.named_buffers()) {
    result.emplace_back(item.key(), item.value());
  }
  return result;
}

inline bool has_memory(const at::Tensor& tensor) {
  try {
    return tensor.const_data_ptr() != nullptr || tensor.numel() == 0;
  } catch (const c10::Error&) {
    return false;
  }
}

// Bytes, so that NaNs and negative zeros count as well.
inline bool have_same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto left = a.detach().contiguous();
  const auto right = b.detach().contiguous();
  return left.nbytes() == right.nbytes() &&
         (left.nbytes() == 0 ||
          std::memcmp(left.const_data_ptr(), right.const_data_ptr(),
                      left.nbytes()) == 0);
}

inline void expect_same(const NamedTensors& actual,
                        const NamedTensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const auto& [name, tensor] = actual[i];
    const auto& other = expected[i].second;
    SCOPED_TRACE(name);
    EXPECT_EQ(name, expected[i].first);
    ASSERT_EQ(tensor.defined(), other.defined());
    if (!tensor.defined()) continue;
    EXPECT_EQ(tensor.sizes(), other.sizes());
    EXPECT_EQ(tensor.strides(), other.strides());
    EXPECT_EQ(tensor.storage_offset(), other.storage_offset());
    EXPECT_EQ(tensor.storage().nbytes(), other.storage().nbytes());
    EXPECT_EQ(tensor.dtype(), other.dtype());
    EXPECT_EQ(tensor.device(), other.device());
    EXPECT_EQ(tensor.requires_grad(), other.requires_grad());
    EXPECT_EQ(tensor.is_leaf(), other.is_leaf());
    EXPECT_TRUE(have_same_bits(tensor, other));
  }
}

// Numbers that depend on every part of the default generator's state.
inline at::Tensor next_draws() {
  return torch::cat({torch::empty({3}, torch::kDouble).normal_(),
                     torch::rand({3}, torch::kDouble)});
}

// Builds with both ways from the same seed and compares. Returns how many of
// the tensors had no memory before they were materialized.
inline int expect_same_construction(const std::function<NamedTensors()>& build,
                                    const ConstructionOptions& options = {}) {
  torch::manual_seed(7);
  const NamedTensors expected = build();
  const auto expected_draws = next_draws();

  torch::manual_seed(7);
  auto deferred = defer_construction(build, options);
  int num_deferred = 0;
  for (const auto& [name, tensor] : deferred.result) {
    if (tensor.defined() && !has_memory(tensor)) ++num_deferred;
  }
  const NamedTensors actual = materialize(std::move(deferred));
  expect_same(actual, expected);
  EXPECT_TRUE(have_same_bits(next_draws(), expected_draws))
      << "the generator ends in another state";
  return num_deferred;
}

// The same for one tensor.
inline int expect_same_tensor(const std::function<at::Tensor()>& build,
                              const ConstructionOptions& options = {}) {
  return expect_same_construction(
      [&] { return NamedTensors{{"tensor", build()}}; }, options);
}

}  // namespace nfold
