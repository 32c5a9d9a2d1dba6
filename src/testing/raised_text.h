// File: raised_text.h
//
// The text of the error that something raises, for tests of errors.
//
//   EXPECT_THAT(text_of<IoError>([&] { open(path); }), HasSubstr(path));
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "nfold/errors.h"

namespace nfold {

// Fails the test and returns nothing when no Error is raised.
template <typename Error, typename F>
std::string text_of(F&& raise) {
  try {
    raise();
  } catch (const Error& error) {
    return message_of(error);
  }
  ADD_FAILURE() << "nothing of this type was raised";
  return "";
}

}  // namespace nfold
