#include "nfold/errors.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace nfold {
namespace {

template <typename F>
std::string text_of(F&& raise) {
  try {
    raise();
  } catch (const std::exception& error) {
    return message_of(error);
  }
  return "nothing was raised";
}

TEST(MessageOf, DropsStackTraceOfTorchError) {
  EXPECT_EQ(text_of([] { TORCH_CHECK_VALUE(false, "lr: expected > 0"); }),
            "lr: expected > 0");
}

TEST(MessageOf, DropsStackTraceThatPassedThroughAnotherType) {
  const std::string text = text_of([] {
    try {
      TORCH_CHECK(false, "first line\nsecond line");
    } catch (const c10::Error& error) {
      throw std::runtime_error(error.what());
    }
  });
  EXPECT_EQ(text, "first line\nsecond line");
}

TEST(MessageOf, KeepsTextOfOtherErrors) {
  EXPECT_EQ(text_of([] { throw std::out_of_range("index 3"); }), "index 3");
}

TEST(CheckIo, RaisesIoErrorWithText) {
  const std::string file = "a.bin";
  EXPECT_THROW(NFOLD_CHECK_IO(false, file, ": short"), IoError);
  EXPECT_EQ(text_of([&] { NFOLD_CHECK_IO(1 > 2, file, ": short by ", 3); }),
            "a.bin: short by 3");
}

TEST(CheckIo, IsCaughtAsTorchErrorButNotAsValueError) {
  try {
    NFOLD_CHECK_IO(false, "x");
    FAIL();
  } catch (const c10::ValueError&) {
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_STREQ(error.what_without_backtrace(), "x");
  }
}

TEST(CheckIo, DoesNothingWhenTrue) {
  if (true) NFOLD_CHECK_IO(true, "x");
  SUCCEED();
}

}  // namespace
}  // namespace nfold
