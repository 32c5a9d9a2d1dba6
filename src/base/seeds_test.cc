#include "nfold/seeds.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace nfold {
namespace {

TEST(SetRandomSeed, MakesTorchAndTheCLibraryStartAgain) {
  set_random_seed(1234);
  const auto tensor = at::rand({4});
  const int number = std::rand();
  EXPECT_FALSE(at::equal(at::rand({4}), tensor));
  set_random_seed(1234);
  EXPECT_TRUE(at::equal(at::rand({4}), tensor));
  EXPECT_EQ(std::rand(), number);
}

TEST(SetRandomSeed, HugeSeedsAreTakenModuloWhatAGeneratorHolds) {
  const std::uint64_t huge = ~std::uint64_t{0} - 6;
  set_random_seed(huge);
  const auto tensor = at::rand({4});
  const int number = std::rand();
  at::manual_seed(huge - (std::uint64_t{1} << 63));
  EXPECT_TRUE(at::equal(at::rand({4}), tensor));
  std::srand(static_cast<unsigned>(huge % (std::uint64_t{1} << 32)));
  EXPECT_EQ(std::rand(), number);
}

}  // namespace
}  // namespace nfold
