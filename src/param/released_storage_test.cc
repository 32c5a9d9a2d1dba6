#include "param/released_storage.h"

#include <c10/core/StorageImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

// Without the checks of data_ptr.
const void* memory_of(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()
      ->unsafe_storage()
      .unsafeGetStorageImpl()
      ->_mutable_data_ptr_no_checks()
      .get();
}

std::string raw_access_error(const at::Tensor& tensor) {
  return text_of<c10::Error>([&] { tensor.const_data_ptr(); });
}

TEST(ReleasedStorageTest, HasSizesAndAStorageSizeButNoMemory) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
    const auto flat = make_released(100, dtype, "sharded");
    EXPECT_EQ(flat.sizes(), at::IntArrayRef({100}));
    EXPECT_EQ(flat.scalar_type(), dtype);
    EXPECT_TRUE(flat.is_contiguous() && flat.device().is_cpu());
    EXPECT_EQ(flat.storage().nbytes(), 100 * c10::elementSize(dtype));
    EXPECT_EQ(memory_of(flat), nullptr);
  }
}

TEST(ReleasedStorageTest, RawAccessRaisesTheGivenText) {
  const auto flat = make_released(8, at::kFloat, "layer.weight is sharded");
  const auto view = flat.narrow(0, 2, 4).view({2, 2});
  EXPECT_THAT(raw_access_error(flat), HasSubstr("layer.weight is sharded"));
  EXPECT_THAT(raw_access_error(view), HasSubstr("layer.weight is sharded"));
  EXPECT_THAT(text_of<c10::Error>([&] { view.mutable_data_ptr<float>(); }),
              HasSubstr("layer.weight is sharded"));
  EXPECT_THAT(text_of<c10::Error>([&] { view.accessor<float, 2>(); }),
              HasSubstr("layer.weight is sharded"));
  give_memory(flat);
  take_memory(flat, "another text");
  EXPECT_THAT(raw_access_error(view), HasSubstr("another text"));
}

TEST(ReleasedStorageTest, ViewsMadeBeforeSeeMemoryThatComes) {
  const auto flat = make_released(100, at::kFloat, "sharded");
  const auto view = flat.narrow(0, 16, 12).view({3, 4});
  for (float value : {1.0f, 2.0f}) {
    give_memory(flat);
    EXPECT_EQ(view.const_data_ptr<float>(), flat.const_data_ptr<float>() + 16);
    EXPECT_EQ(
        reinterpret_cast<std::uintptr_t>(flat.const_data_ptr<float>()) % 64, 0);
    flat.fill_(value);
    EXPECT_EQ(view.sum().item<float>(), 12 * value);
    take_memory(flat, "sharded");
    EXPECT_EQ(memory_of(flat), nullptr);
  }
}

TEST(ReleasedStorageTest, AliasesAndVersionsDoNotNotice) {
  const auto flat = make_released(8, at::kFloat, "sharded");
  const auto view = flat.narrow(0, 0, 4);
  give_memory(flat);
  const auto later = flat.narrow(0, 4, 4);
  take_memory(flat, "sharded");
  give_memory(flat);
  EXPECT_EQ(flat._version(), 0);
  EXPECT_EQ(view._version(), 0);
  EXPECT_TRUE(view.is_alias_of(flat) && later.is_alias_of(view));
  EXPECT_EQ(flat.storage().nbytes(), 8 * sizeof(float));
}

TEST(ReleasedStorageTest, TakingTwiceIsTakingOnce) {
  const auto flat = make_released(8, at::kFloat, "first");
  take_memory(flat, "second");
  EXPECT_THAT(raw_access_error(flat), HasSubstr("second"));
  give_memory(flat);
  EXPECT_NE(flat.const_data_ptr<float>(), nullptr);
}

TEST(ReleasedStorageTest, NoElementsNeedNoMemory) {
  const auto flat = make_released(0, at::kFloat, "sharded");
  give_memory(flat);
  EXPECT_EQ(flat.numel(), 0);
  EXPECT_EQ(flat.sum().item<float>(), 0);
  take_memory(flat, "sharded");
  EXPECT_THAT(raw_access_error(flat), HasSubstr("sharded"));
}

}  // namespace
}  // namespace nfold
