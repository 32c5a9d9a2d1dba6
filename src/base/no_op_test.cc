#include "nfold/no_op.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace nfold {
namespace {

int twice(int x) { return 2 * x; }

TEST(NoOpDecorator, ReturnsTheSameFunction) {
  EXPECT_EQ(&noop_decorator(twice), &twice);
  auto counting = [count = 0]() mutable { return ++count; };
  auto& decorated = noop_decorator(counting);
  EXPECT_EQ(&decorated, &counting);
  decorated();
  EXPECT_EQ(counting(), 2);
}

TEST(NoOpScope, LetsExceptionsPass) {
  EXPECT_THROW(
      {
        const NoOpScope scope;
        throw std::runtime_error("x");
      },
      std::runtime_error);
}

}  // namespace
}  // namespace nfold
