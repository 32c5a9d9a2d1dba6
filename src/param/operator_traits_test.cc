#include "param/operator_traits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nfold {
namespace {

using testing::ElementsAre;
using testing::Optional;

const OperatorTraits& traits_of(const char* name, const char* overload = "") {
  return operator_traits(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

TEST(OperatorTraitsTest, RandomOperatorsAreKnownByTagOrGenerator) {
  EXPECT_TRUE(traits_of("aten::normal_").is_random);
  EXPECT_TRUE(traits_of("aten::randn").is_random);
  EXPECT_TRUE(traits_of("aten::randperm").is_random);
  EXPECT_TRUE(traits_of("aten::native_dropout").is_random);
  EXPECT_TRUE(traits_of("aten::bernoulli").is_random);
  EXPECT_FALSE(traits_of("aten::fill_", "Scalar").is_random);
  EXPECT_FALSE(traits_of("aten::mul", "Tensor").is_random);
}

TEST(OperatorTraitsTest, CompositeOperatorsHaveNoKernelOfTheirOwn) {
  EXPECT_TRUE(traits_of("aten::reshape").is_composite);
  EXPECT_TRUE(traits_of("aten::linear").is_composite);
  EXPECT_TRUE(traits_of("aten::to", "dtype").is_composite);
  EXPECT_TRUE(traits_of("aten::contiguous").is_composite);
  EXPECT_TRUE(traits_of("aten::item").is_composite);
  EXPECT_FALSE(traits_of("aten::view").is_composite);
  EXPECT_FALSE(traits_of("aten::mul", "Tensor").is_composite);
  EXPECT_FALSE(traits_of("aten::ones").is_composite);
}

TEST(OperatorTraitsTest, ViewsAndChangesOfMetadataTouchNoElement) {
  EXPECT_TRUE(traits_of("aten::view").is_view);
  EXPECT_TRUE(traits_of("aten::select", "int").is_view);
  EXPECT_TRUE(traits_of("aten::split", "Tensor").is_view);
  EXPECT_TRUE(traits_of("aten::detach").is_view);
  EXPECT_FALSE(traits_of("aten::clone").is_view);
  EXPECT_FALSE(traits_of("aten::add_", "Tensor").is_view);
  EXPECT_TRUE(traits_of("aten::t_").changes_metadata);
  EXPECT_TRUE(traits_of("aten::squeeze_").changes_metadata);
  EXPECT_TRUE(traits_of("aten::set_", "source_Tensor").changes_metadata);
  EXPECT_FALSE(traits_of("aten::resize_").changes_metadata);
  EXPECT_TRUE(traits_of("aten::resize_").resizes);
}

TEST(OperatorTraitsTest, OverwritingOperatorsDoNotReadWhatTheyWrite) {
  EXPECT_TRUE(traits_of("aten::copy_").overwrites);
  EXPECT_TRUE(traits_of("aten::fill_", "Scalar").overwrites);
  EXPECT_TRUE(traits_of("aten::uniform_").overwrites);
  EXPECT_TRUE(traits_of("aten::add", "out").overwrites);
  EXPECT_FALSE(traits_of("aten::add_", "Tensor").overwrites);
  EXPECT_FALSE(traits_of("aten::index_put_").overwrites);
  EXPECT_FALSE(traits_of("aten::add", "Tensor").overwrites);
}

TEST(OperatorTraitsTest, WrittenArgumentsAndResultsComeFromTheSchema) {
  EXPECT_THAT(traits_of("aten::add_", "Tensor").written, ElementsAre(0));
  EXPECT_THAT(traits_of("aten::add", "out").written, ElementsAre(3));
  EXPECT_THAT(traits_of("aten::_foreach_add_", "List").written, ElementsAre(0));
  EXPECT_FALSE(traits_of("aten::_foreach_add_", "List").returns_tensors);
  EXPECT_TRUE(traits_of("aten::_foreach_add", "List").returns_tensors);
  EXPECT_FALSE(traits_of("aten::equal").returns_tensors);
  EXPECT_FALSE(traits_of("aten::_local_scalar_dense").returns_tensors);
}

TEST(OperatorTraitsTest, OptionsOfFactoriesAreFoundByName) {
  const auto& traits = traits_of("aten::empty", "memory_format");
  EXPECT_THAT(traits.dtype, Optional(1));
  EXPECT_THAT(traits.layout, Optional(2));
  EXPECT_THAT(traits.device, Optional(3));
  EXPECT_THAT(traits.pin_memory, Optional(4));
  EXPECT_EQ(traits.generator, std::nullopt);
  EXPECT_THAT(traits_of("aten::uniform_").generator, Optional(3));
}

}  // namespace
}  // namespace nfold
