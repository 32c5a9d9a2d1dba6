#include "nfold/torch_version.h"

#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(TorchVersionWindow, HoldsBothItsEnds) {
  EXPECT_TRUE(is_version_within("2.11.0", {.min = "2.11", .max = "2.13"}));
  EXPECT_TRUE(is_version_within("2.13.0", {.min = "2.11", .max = "2.13"}));
  EXPECT_FALSE(is_version_within("2.13.1", {.max = "2.13"}));
  EXPECT_FALSE(is_version_within("2.9.1", {.min = "2.11"}));
  EXPECT_TRUE(is_version_within("10.0", {.min = "9.5"}));
}

TEST(TorchVersionWindow, ComparesReleasesOnly) {
  EXPECT_TRUE(is_version_within("2.13.0+cpu", {.max = "2.13.0"}));
  EXPECT_TRUE(is_version_within("2.13.0a0+git1", {.min = "2.13"}));
  EXPECT_TRUE(is_version_within("2.13.0.dev5", {.min = "2.13", .max = "2.13"}));
}

TEST(TorchVersionWindow, NeedsABoundThatIsAVersion) {
  EXPECT_THROW(required_torch_version({}), c10::ValueError);
  EXPECT_THROW(required_torch_version({.min = "new"}), c10::ValueError);
  EXPECT_THROW(required_torch_version({.max = "2."}), c10::ValueError);
}

TEST(RequiredTorchVersion, IsThatOfTheBuild) {
  EXPECT_TRUE(required_torch_version({.min = "2.11"}));
  EXPECT_FALSE(required_torch_version({.max = "2.10.99"}));
}

}  // namespace
}  // namespace nfold
