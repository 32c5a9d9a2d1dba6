#include "kernels/streaming.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/simd.h"

namespace nfold::kernels {
namespace {

TEST(Streaming, PaysForWhatLeavesTheCaches) {
  EXPECT_EQ(stores_for(0), Stores::kCached);
  EXPECT_EQ(stores_for((std::int64_t{4} << 20) - 1), Stores::kCached);
  EXPECT_EQ(stores_for(std::int64_t{4} << 20), Stores::kStreaming);
}

TEST(Streaming, CopiesAnyRangeAndNothingElse) {
  constexpr std::int64_t kRoom = 512;
  std::vector<std::uint8_t> from(kRoom);
  std::iota(from.begin(), from.end(), std::uint8_t{1});
  for (const Simd simd : supported_simds()) {
    const Loops& table = loops_of(simd);
    for (const std::int64_t begin : {0, 1, 15, 16, 31, 32, 63, 64, 65}) {
      for (const std::int64_t source : {0, 3, 64}) {
        for (std::int64_t num_bytes = 0; num_bytes <= 300; ++num_bytes) {
          std::vector<std::uint8_t> to(kRoom, 0);
          table.stream(to.data() + begin, from.data() + source, num_bytes);
          table.finish_stream();
          std::vector<std::uint8_t> expected(kRoom, 0);
          std::copy_n(from.begin() + source, num_bytes,
                      expected.begin() + begin);
          ASSERT_EQ(to, expected)
              << name_of(simd) << " " << begin << " " << num_bytes;
        }
      }
    }
  }
}

TEST(Streaming, BothKindsOfStoresCopy) {
  const std::vector<float> from(100003, 1.5F);
  for (const Stores stores : {Stores::kCached, Stores::kStreaming}) {
    std::vector<float> to(from.size(), 0.0F);
    copy_bytes(to.data(), from.data(),
               static_cast<std::int64_t>(from.size() * sizeof(float)), stores);
    EXPECT_EQ(to, from);
    copy_bytes(nullptr, nullptr, 0, stores);
  }
}

}  // namespace
}  // namespace nfold::kernels
