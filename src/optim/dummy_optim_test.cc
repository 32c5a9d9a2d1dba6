#include "nfold/dummy_optim.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace nfold {
namespace {

TEST(DummyOptim, HasOneGroupAndChangesNothing) {
  const auto a = at::ones({2}).requires_grad_();
  const auto b = at::ones({3}).requires_grad_();
  a.mutable_grad() = at::ones({2});
  DummyOptim optimizer(std::vector<at::Tensor>{a, b});
  ASSERT_EQ(optimizer.param_groups().size(), 1);
  ASSERT_EQ(optimizer.param_groups()[0].params().size(), 2);
  EXPECT_TRUE(optimizer.param_groups()[0].params()[0].is_same(a));
  EXPECT_TRUE(optimizer.param_groups()[0].params()[1].is_same(b));
  EXPECT_FALSE(optimizer.step().defined());
  EXPECT_TRUE(at::equal(a, at::ones({2})));
  EXPECT_TRUE(optimizer.state().empty());
  EXPECT_EQ(optimizer.step([] { return at::ones({}); }).item<float>(), 1);
}

}  // namespace
}  // namespace nfold
