#include "param/deferred_storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using testing::HasSubstr;

TEST(DeferredStorageTest, ATensorOnItHasEverythingButElements) {
  const auto like = torch::rand({4, 6}).t();
  const auto storage = make_deferred_storage(96, at::kCPU, "it comes later");
  auto tensor = tensor_on(storage, like);
  EXPECT_TRUE(has_geometry(tensor, like));
  EXPECT_TRUE(tensor.is_cpu());
  EXPECT_EQ(tensor.dtype(), like.dtype());
  EXPECT_EQ(tensor.key_set(), like.key_set());
  tensor.set_requires_grad(true);
  EXPECT_TRUE(tensor.is_leaf());
  EXPECT_TRUE(tensor.detach()[1].is_alias_of(tensor));
}

TEST(DeferredStorageTest, AccessToElementsSaysWhyThereAreNone) {
  const auto like = torch::rand({4});
  const auto tensor =
      tensor_on(make_deferred_storage(16, at::kCPU, "it comes later"), like);
  EXPECT_THAT(text_of<c10::Error>([&] { tensor.data_ptr<float>(); }),
              HasSubstr("it comes later"));
  EXPECT_THAT(text_of<c10::Error>([&] { tensor.const_data_ptr<float>(); }),
              HasSubstr("it comes later"));
  EXPECT_THAT(text_of<c10::Error>([&] { tensor + 1; }),
              HasSubstr("it comes later"));
}

TEST(DeferredStorageTest, FillingMakesEveryViewReal) {
  const auto value = torch::rand({4, 6});
  const auto expected = value.clone();
  const auto storage = make_deferred_storage(96, at::kCPU, "later");
  const auto tensor = tensor_on(storage, value);
  const auto row = tensor[2];
  const auto version = tensor._version();
  c10::Storage memory = copy_storage(value.storage());
  const void* address = memory.data();
  fill_deferred_storage(storage, std::move(memory));
  EXPECT_TRUE(torch::equal(tensor, expected));
  EXPECT_TRUE(torch::equal(row, expected[2]));
  EXPECT_EQ(tensor.data_ptr(), address) << "copied";
  EXPECT_EQ(tensor._version(), version);
}

TEST(DeferredStorageTest, AValueWithOtherHoldersIsCopied) {
  const auto value = torch::rand({4});
  const auto storage = make_deferred_storage(16, at::kCPU, "later");
  const auto tensor = tensor_on(storage, value);
  fill_deferred_storage(storage, value.storage());
  EXPECT_TRUE(torch::equal(tensor, value));
  EXPECT_FALSE(tensor.is_alias_of(value));
  EXPECT_NE(tensor.data_ptr(), value.data_ptr());
}

TEST(DeferredStorageTest, TakenMemoryKeepsItsValues) {
  const auto tensor = torch::rand({4});
  const auto expected = tensor.clone();
  const auto memory = defer_storage(tensor.storage(), "taken");
  EXPECT_THAT(text_of<c10::Error>([&] { tensor.data_ptr(); }),
              HasSubstr("taken"));
  EXPECT_TRUE(torch::equal(tensor_on(memory, tensor), expected));
  fill_deferred_storage(tensor.storage(), copy_storage(memory));
  EXPECT_TRUE(torch::equal(tensor, expected));
}

TEST(DeferredStorageTest, ConjugateAndNumberTensorsStaySuch) {
  const auto complex = torch::rand({3}, torch::kComplexFloat).conj();
  EXPECT_TRUE(tensor_on(complex.storage(), complex).is_conj());
  EXPECT_TRUE(torch::equal(tensor_on(complex.storage(), complex), complex));
}

}  // namespace
}  // namespace nfold
