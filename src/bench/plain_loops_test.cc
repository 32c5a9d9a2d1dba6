#include "bench/plain_loops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

namespace nfold::bench {
namespace {

// Several threads' parts, and tails.
constexpr std::int64_t kNumel = (std::int64_t{1} << 18) + 7;

TEST(PlainLoopsTest, CopyCopies) {
  const at::Tensor from = at::rand({kNumel}).to(at::kBFloat16);
  const at::Tensor to = at::empty_like(from);
  copy_bytes(to, from);
  EXPECT_TRUE(at::equal(to, from));
  EXPECT_THROW(copy_bytes(at::empty({3}), from), c10::ValueError);
}

TEST(PlainLoopsTest, UpdateWritesTheFirstArraysOnly) {
  struct Shape {
    int num_read;
    int num_written;
  };
  for (const Shape shape : {Shape{1, 1}, {2, 1}, {3, 2}, {4, 1}, {4, 3}}) {
    std::vector<at::Tensor> arrays;
    std::vector<at::Tensor> expected;
    for (int i = 0; i < shape.num_read; ++i) {
      arrays.push_back(at::rand({kNumel}));
    }
    const at::Tensor mean = at::stack(arrays).mean(0);
    for (int i = 0; i < shape.num_read; ++i) {
      expected.push_back(i < shape.num_written ? 0.5 * (arrays[i] + mean)
                                               : arrays[i].clone());
    }
    update_in_place(arrays, shape.num_written);
    for (int i = 0; i < shape.num_read; ++i) {
      EXPECT_TRUE(at::allclose(arrays[i], expected[i])) << i;
    }
  }
}

TEST(PlainLoopsTest, UpdateRefusesWhatItDoesNotKnow) {
  const at::Tensor a = at::zeros({8});
  EXPECT_THROW(update_in_place({a, a}, 2), c10::ValueError);
  EXPECT_THROW(update_in_place({a, at::zeros({9})}, 1), c10::ValueError);
  EXPECT_THROW(update_in_place({a.to(at::kDouble)}, 1), c10::ValueError);
}

TEST(PlainLoopsTest, ReadingReadsEverything) {
  const at::Tensor a = at::arange(1000).to(at::kFloat);
  EXPECT_EQ(read_all(a), 999 * 500);
  EXPECT_NEAR(read_all(at::ones({kNumel})), static_cast<double>(kNumel), 0.5);
}

}  // namespace
}  // namespace nfold::bench
