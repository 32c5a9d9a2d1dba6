#include "nfold/host_memory.h"

#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <thread>

#include "base/process_memory.h"

namespace nfold {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

at::Tensor tensor_of(std::int64_t num_bytes) {
  return torch::empty({num_bytes}, at::kByte);
}

class HostMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!enable_host_cache()) {
      GTEST_SKIP() << "no cache in builds with a sanitizer";
    }
    release_host_cache();
  }
};

TEST_F(HostMemoryTest, IsThereOnceAndServesLargeTensorsOnly) {
  EXPECT_TRUE(enable_host_cache());
  const auto before = host_memory_stats();
  const auto small = tensor_of(1000);
  EXPECT_EQ(host_memory_stats().in_use_bytes, before.in_use_bytes);
  const auto large = tensor_of(3 * kMiB);
  EXPECT_EQ(host_memory_stats().in_use_bytes, before.in_use_bytes + 3 * kMiB);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.data_ptr()) % 64, 0);
}

TEST_F(HostMemoryTest, FreedMemoryComesAgain) {
  void* data = tensor_of(5 * kMiB).data_ptr();
  const auto before = host_memory_stats();
  const auto again = tensor_of(5 * kMiB);
  EXPECT_EQ(again.data_ptr(), data);
  const auto after = host_memory_stats();
  EXPECT_EQ(after.reused, before.reused + 1);
  EXPECT_EQ(after.fresh, before.fresh);
}

// As many as the activations of a step, below what the cache serves.
TEST_F(HostMemoryTest, SmallTensorsAreKeptToo) {
  const auto step = [] {
    std::vector<at::Tensor> held;
    for (int i = 0; i < 100; ++i) held.push_back(tensor_of(200 << 10).fill_(1));
  };
  const auto page_faults = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
  };
  step();
  step();
  const auto kept = process_memory().rss_bytes;
  const auto before = page_faults();
  for (int i = 0; i < 10; ++i) step();
  // Of 50,000 pages: what a heap moves about.
  EXPECT_LT(page_faults() - before, 1000);
  release_host_cache();
  EXPECT_LT(process_memory().rss_bytes, kept - 15 * kMiB);
}

TEST_F(HostMemoryTest, WhatIsKeptGoesBackWhenAsked) {
  tensor_of(200 * kMiB).fill_(1);
  const auto kept = process_memory().rss_bytes;
  release_host_cache();
  const auto stats = host_memory_stats();
  EXPECT_EQ(stats.resident_bytes, stats.in_use_bytes);
  EXPECT_LT(process_memory().rss_bytes, kept - 150 * kMiB);
}

// 3 x 64 MiB at once at most; what does not fit replaces what is kept, until an
// eighth is allowed on top.
TEST_F(HostMemoryTest, TheProcessKeepsLittleMoreThanItEverUsed) {
  reset_peak_rss();
  const auto before = process_memory().rss_bytes;
  for (int round = 0; round < 3; ++round) {
    for (const std::int64_t size : {10, 30, 64, 70, 96, 100, 128, 150, 192}) {
      std::vector<at::Tensor> held;
      for (std::int64_t sum = size; sum <= 192; sum += size) {
        held.push_back(tensor_of(size * kMiB).fill_(1));
      }
    }
  }
  EXPECT_LT(process_memory().peak_rss_bytes - before, (192 + 24 + 24) * kMiB);
}

TEST_F(HostMemoryTest, ValuesSurviveManyThreads) {
  std::vector<std::thread> threads;
  for (int seed = 0; seed < 4; ++seed) {
    threads.emplace_back([seed] {
      std::vector<at::Tensor> held(8);
      for (int i = 0; i < 400; ++i) {
        auto& slot = held[static_cast<std::size_t>((i * 7 + seed) % 8)];
        if (slot.defined()) {
          EXPECT_EQ(slot[0].item<std::uint8_t>(), seed);
          EXPECT_EQ(slot[-1].item<std::uint8_t>(), seed);
        }
        slot = tensor_of(300'000 + (i * 37 % 11) * 90'000);
        slot[0].fill_(seed);
        slot[-1].fill_(seed);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(HostMemoryTest, TheRawInterfaceFreesBothKinds) {
  auto* allocator = c10::GetCPUAllocator();
  for (const std::size_t size : {std::size_t{100}, std::size_t{4 * kMiB}}) {
    const auto before = host_memory_stats().in_use_bytes;
    void* data = allocator->raw_allocate(size);
    ASSERT_NE(data, nullptr);
    allocator->raw_deallocate(data);
    EXPECT_EQ(host_memory_stats().in_use_bytes, before);
  }
}

TEST_F(HostMemoryTest, AProgramsOwnAllocatorStays) {
  struct Own : c10::Allocator {
    c10::DataPtr allocate(std::size_t num_bytes) override {
      return c10::GetDefaultCPUAllocator()->allocate(num_bytes);
    }
    void copy_data(void* to, const void* from, std::size_t n) const override {
      default_copy_data(to, from, n);
    }
  } own;
  auto* cache = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&own, 1);
  EXPECT_FALSE(enable_host_cache());
  EXPECT_EQ(c10::GetCPUAllocator(), &own);
  EXPECT_EQ(host_memory_stats().in_use_bytes, 0);
  c10::SetCPUAllocator(cache, 1);
}

}  // namespace
}  // namespace nfold
