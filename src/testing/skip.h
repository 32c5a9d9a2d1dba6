// File: skip.h
//
// Skips a test for what the machine lacks. Continuous integration (CI set to
// anything) installs everything, so there it is a failure: a test that is
// always skipped would prove nothing.
//
//   if (!has_package) NFOLD_SKIP("no package tokenizers");
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#define NFOLD_SKIP(reason)                                \
  do {                                                    \
    if (std::getenv("CI")) FAIL() << "in CI: " << reason; \
    GTEST_SKIP() << reason;                               \
  } while (false)
