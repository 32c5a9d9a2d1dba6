#include "nfold/call_text.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

TEST(CallToStr, HasPositionalAndNamedArguments) {
  EXPECT_EQ(call_to_str("f", 1, "a", named("x", 2), named("y", "z")),
            "f(1, 'a', x=2, y='z')");
  EXPECT_EQ(call_to_str("g"), "g()");
  EXPECT_EQ(call_to_str("h", named("k", 1)), "h(k=1)");
  EXPECT_EQ(call_to_str("m", 3), "m(3)");
}

TEST(CallToStr, QuotesEveryKindOfString) {
  const std::string text = "it's";
  EXPECT_EQ(call_to_str("f", text, std::string_view("b")), "f('it\\'s', 'b')");
  EXPECT_EQ(call_to_str("f", 0.5), "f(0.5)");
}

}  // namespace
}  // namespace nfold
