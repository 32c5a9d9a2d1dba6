// What deferred construction holds, in bytes that the allocator of the CPU has
// given out, and as resident memory of the process.
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <atomic>

#include "base/process_memory.h"
#include "param/construction_test.h"
#include "param/deferred_storage.h"

namespace nfold {
namespace {

// Counts what is allocated from it.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator& base) : base_(base) {}

  c10::DataPtr allocate(std::size_t nbytes) override {
    auto* block = new Block{base_.allocate(nbytes), nbytes, *this};
    held_bytes_ += nbytes;
    if (nbytes >= 1 << 20) ++num_large_;
    peak_bytes_ = std::max<std::size_t>(peak_bytes_, held_bytes_);
    void* data = block->memory.get();
    return {data, block, &CountingAllocator::release,
            c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from,
                 std::size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }

  std::size_t held_bytes() const { return held_bytes_; }
  std::size_t peak_bytes() const { return peak_bytes_; }
  void reset_peak() { peak_bytes_ = held_bytes_; }
  // Allocations of a MiB or more.
  int num_large() const { return num_large_; }

 private:
  struct Block {
    c10::DataPtr memory;
    std::size_t nbytes;
    CountingAllocator& allocator;
  };

  static void release(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    block->allocator.held_bytes_ -= block->nbytes;
  }

  c10::Allocator& base_;
  std::size_t held_bytes_ = 0;
  std::size_t peak_bytes_ = 0;
  int num_large_ = 0;
};

// Never destroyed: tensors that torch keeps for ever may come from it.
CountingAllocator& counting_allocator() {
  static auto* allocator = new CountingAllocator(*c10::GetCPUAllocator());
  return *allocator;
}

class ConstructionMemoryTest : public testing::Test {
 protected:
  ConstructionMemoryTest() : previous_(c10::GetCPUAllocator()) {
    c10::SetCPUAllocator(&counting_allocator(), /*priority=*/1);
    before_ = counting_allocator().held_bytes();
    counting_allocator().reset_peak();
  }
  ~ConstructionMemoryTest() override {
    c10::SetCPUAllocator(previous_, /*priority=*/1);
  }

  // Beyond what was there when the test began.
  std::int64_t held() const {
    return static_cast<std::int64_t>(counting_allocator().held_bytes()) -
           static_cast<std::int64_t>(before_);
  }
  std::int64_t peak() const {
    return static_cast<std::int64_t>(counting_allocator().peak_bytes() -
                                     before_);
  }

 private:
  c10::Allocator* previous_;
  std::size_t before_ = 0;
};

constexpr std::int64_t kKiB = 1024;
constexpr std::int64_t kMiB = 1024 * kKiB;

// 87 million parameters.
torch::nn::Sequential large_model() {
  torch::nn::Sequential model;
  for (int i = 0; i < 5; ++i) {
    model->push_back(torch::nn::Linear(4096, 4096));
    model->push_back(torch::nn::LayerNorm(torch::nn::LayerNormOptions({4096})));
  }
  return model;
}

std::int64_t bytes_of(const torch::nn::Module& module) {
  std::int64_t nbytes = 0;
  for (const auto& tensor : module.parameters()) {
    nbytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  return nbytes;
}

TEST_F(ConstructionMemoryTest, ConstructionHoldsNothing) {
  const auto rss_before = process_memory().rss_bytes;
  auto deferred = defer_construction(large_model);
  EXPECT_GT(bytes_of(*deferred.result), 300 * kMiB);
  // 16 KiB for each bias and each weight of a norm, which are small enough to
  // be real from the start.
  EXPECT_LE(peak(), 5 * 3 * 16 * kKiB + 8 * kKiB);
  EXPECT_LT(process_memory().rss_bytes - rss_before, 8 * kMiB);
}

TEST_F(ConstructionMemoryTest, MaterializingHoldsTheModuleAndNothingElse) {
  const auto model = materialize(defer_construction(large_model));
  EXPECT_LE(held(), bytes_of(*model) + 8 * kKiB);
  EXPECT_LE(peak(), bytes_of(*model) + 5 * 3 * 16 * kKiB + 8 * kKiB);
}

// Keeps an eighth of everything, as one of eight ranks does.
class ShardSink : public ReplaySink {
 public:
  Destination destination_of(const c10::Storage&) override {
    return Destination::kSink;
  }
  void store(const c10::Storage&, c10::Storage value) override {
    const auto nbytes = static_cast<std::int64_t>(value.nbytes());
    shards_.push_back(
        torch::from_blob(value.mutable_data(), {nbytes / 8}, torch::kUInt8)
            .clone());
  }
  c10::Storage load(const c10::Storage&) override {
    ADD_FAILURE() << "nothing is changed after it was handed over";
    return {};
  }

 private:
  std::vector<at::Tensor> shards_;
};

TEST_F(ConstructionMemoryTest, ASinkSeesOneParameterAtATime) {
  auto deferred = defer_construction(large_model);
  const std::int64_t total = bytes_of(*deferred.result);
  ShardSink sink;
  counting_allocator().reset_peak();
  replay(std::move(deferred.tape), &sink, {.max_waiting_bytes = 0});
  const std::int64_t largest = 4096 * 4096 * 4;
  EXPECT_LE(peak(), total / 8 + largest + 5 * 3 * 16 * kKiB + 64 * kKiB);
}

TEST_F(ConstructionMemoryTest, ASecondInitialisationOfEverythingCostsNoMore) {
  auto deferred = defer_construction([] {
    auto model = large_model();
    for (auto& tensor : model->parameters()) {
      torch::nn::init::normal_(tensor, 0, 0.02);
    }
    return model;
  });
  const std::int64_t total = bytes_of(*deferred.result);
  ShardSink sink;
  counting_allocator().reset_peak();
  replay(std::move(deferred.tape), &sink, {.max_waiting_bytes = 0});
  const std::int64_t largest = 4096 * 4096 * 4;
  EXPECT_LE(peak(), total / 8 + largest + 5 * 3 * 16 * kKiB + 64 * kKiB);
}

TEST_F(ConstructionMemoryTest, ReadingAValueHoldsItsChainOnly) {
  const std::int64_t one = 1024 * 1024 * 4;
  auto deferred = defer_construction([&] {
    std::vector<at::Tensor> weights;
    for (int i = 0; i < 8; ++i) {
      auto weight = torch::randn({1024, 1024});
      weight.div_(weight.norm().item());
      weights.push_back(weight);
    }
    return weights;
  });
  EXPECT_LE(peak(), 2 * one);
  EXPECT_LE(held(), 64 * kKiB);
  const auto weights = materialize(std::move(deferred));
  EXPECT_FLOAT_EQ(weights[7].norm().item<float>(), 1);
}

TEST_F(ConstructionMemoryTest, ReadingElementByElementComputesOnce) {
  const int before = counting_allocator().num_large();
  const auto deferred = defer_construction([&] {
    const auto weight = torch::randn({512, 512});
    for (int i = 0; i < 512; ++i) weight[i][i].item();
    return weight;
  });
  EXPECT_EQ(counting_allocator().num_large() - before, 1);
}

TEST_F(ConstructionMemoryTest, TemporariesGoWithTheirParameter) {
  const std::int64_t one = 512 * 512 * 4;
  auto deferred = defer_construction([] {
    torch::nn::ModuleList list;
    for (int i = 0; i < 8; ++i) {
      torch::nn::Linear linear(torch::nn::LinearOptions(512, 512).bias(false));
      torch::nn::init::orthogonal_(linear->weight);
      list->push_back(linear);
    }
    return list;
  });
  EXPECT_LE(peak(), 64 * kKiB);
  ShardSink sink;
  replay(std::move(deferred.tape), &sink, {.max_waiting_bytes = 0});
  // A chain of orthogonal_ holds the random matrix, q, r and the weight, and
  // LAPACK a copy.
  EXPECT_LE(peak(), 8 * one / 8 + 6 * one);
}

}  // namespace
}  // namespace nfold
