#include "param/tape_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>

#include "param/construction_test.h"
#include "param/deferred_storage.h"

namespace nfold {
namespace {

// Takes storages of at least this many bytes, and keeps what it is given.
class RecordingSink : public ReplaySink {
 public:
  explicit RecordingSink(std::size_t min_bytes) : min_bytes_(min_bytes) {}

  Destination destination_of(const c10::Storage& deferred) override {
    return deferred.nbytes() >= min_bytes_ ? Destination::kSink
                                           : small_destination;
  }
  void store(const c10::Storage& deferred, c10::Storage value) override {
    log += "store" + std::to_string(number_of(deferred)) + " ";
    values_[deferred.unsafeGetStorageImpl()] = std::move(value);
  }
  c10::Storage load(const c10::Storage& deferred) override {
    log += "load" + std::to_string(number_of(deferred)) + " ";
    return copy_storage(values_.at(deferred.unsafeGetStorageImpl()));
  }

  at::Tensor value_of(const at::Tensor& deferred) const {
    return tensor_on(values_.at(deferred.storage().unsafeGetStorageImpl()),
                     deferred);
  }

  std::string log;
  Destination small_destination = Destination::kInPlace;

 private:
  // In the order of their first store.
  std::size_t number_of(const c10::Storage& deferred) {
    return numbers_.emplace(deferred.unsafeGetStorageImpl(), numbers_.size())
        .first->second;
  }

  std::size_t min_bytes_;
  std::map<const c10::StorageImpl*, c10::Storage> values_;
  std::map<const c10::StorageImpl*, std::size_t> numbers_;
};

TEST(TapeReplayTest, TheSinkIsGivenEachParameterOnceInOrder) {
  torch::manual_seed(7);
  const auto expected = tensors_of_module(*torch::nn::LSTM(64, 96));
  torch::manual_seed(7);
  auto deferred = defer_construction([] { return torch::nn::LSTM(64, 96); });
  RecordingSink sink(1);
  replay(std::move(deferred.tape), &sink);
  EXPECT_EQ(sink.log, "store0 store1 store2 store3 ");
  NamedTensors actual;
  for (const auto& [name, tensor] : tensors_of_module(*deferred.result)) {
    EXPECT_FALSE(has_memory(tensor));
    actual.emplace_back(name, sink.value_of(tensor).set_requires_grad(true));
  }
  expect_same(actual, expected);
}

TEST(TapeReplayTest, TheTapeKnowsWhichTensorsAreDeferred) {
  const auto outside = torch::ones({80, 96});
  const auto deferred = defer_construction([&] {
    return std::vector{torch::randn({80, 96}), torch::ones({3}),
                       outside + torch::randn({80, 96})};
  });
  const auto& tape = *deferred.tape;
  EXPECT_TRUE(tape.is_deferred(deferred.result[0]));
  EXPECT_TRUE(tape.is_deferred(deferred.result[0][3]));
  EXPECT_FALSE(tape.is_deferred(deferred.result[1]));
  EXPECT_TRUE(tape.is_deferred(deferred.result[2]));
  EXPECT_FALSE(tape.is_deferred(outside));
}

TEST(TapeReplayTest, WhatTheSinkDoesNotTakeBecomesRealInPlace) {
  auto deferred = defer_construction(
      [] { return std::pair{torch::randn({80, 96}), torch::randn({8, 9})}; });
  RecordingSink sink(10000);
  replay(std::move(deferred.tape), &sink);
  EXPECT_EQ(sink.log, "store0 ");
  EXPECT_FALSE(has_memory(deferred.result.first));
  EXPECT_TRUE(has_memory(deferred.result.second));
}

TEST(TapeReplayTest, WhatGoesNowhereIsDrawnButStaysDeferred) {
  torch::manual_seed(7);
  const auto build = [] {
    return std::pair{torch::randn({8, 9}), torch::randn({80, 96})};
  };
  const auto expected = build();
  torch::manual_seed(7);
  auto deferred = defer_construction(build);
  RecordingSink sink(10000);
  sink.small_destination = ReplaySink::Destination::kNowhere;
  replay(std::move(deferred.tape), &sink);
  EXPECT_FALSE(has_memory(deferred.result.first));
  EXPECT_TRUE(
      have_same_bits(sink.value_of(deferred.result.second), expected.second));
}

TEST(TapeReplayTest, AMissingTapeIsAnError) {
  EXPECT_THROW(replay(nullptr), c10::ValueError);
}

// As models do that initialise all of their weights a second time.
std::pair<at::Tensor, at::Tensor> built_twice(bool is_partial) {
  auto first = torch::randn({80, 96});
  auto second = torch::randn({80, 96});
  for (const auto& tensor : {first, second}) {
    (is_partial ? tensor[5] : tensor).normal_(0, 0.02);
  }
  return {first, second};
}

TEST(TapeReplayTest, AnOverwrittenValueIsNeverHandedOver) {
  torch::manual_seed(7);
  const auto expected = built_twice(false);
  torch::manual_seed(7);
  auto deferred = defer_construction([] { return built_twice(false); });
  RecordingSink sink(1);
  replay(std::move(deferred.tape), &sink, {.max_waiting_bytes = 0});
  EXPECT_EQ(sink.log, "store0 store1 ");
  EXPECT_TRUE(
      have_same_bits(sink.value_of(deferred.result.first), expected.first));
  EXPECT_TRUE(
      have_same_bits(sink.value_of(deferred.result.second), expected.second));
}

TEST(TapeReplayTest, AValueChangedInPartIsFetchedAgain) {
  torch::manual_seed(7);
  const auto expected = built_twice(true);
  for (const auto& [max_waiting_bytes, log] :
       {std::pair{0, "store0 store1 load0 store0 load1 store1 "},
        {1 << 20, "store0 store1 "}}) {
    torch::manual_seed(7);
    auto deferred = defer_construction([] { return built_twice(true); });
    RecordingSink sink(1);
    replay(std::move(deferred.tape), &sink,
           {.max_waiting_bytes = max_waiting_bytes});
    EXPECT_EQ(sink.log, log);
    EXPECT_TRUE(
        have_same_bits(sink.value_of(deferred.result.first), expected.first));
    EXPECT_TRUE(
        have_same_bits(sink.value_of(deferred.result.second), expected.second));
  }
}

TEST(TapeReplayTest, ViewsOfOneStorageAreHandedOverAsOne) {
  auto deferred = defer_construction([] {
    auto flat = torch::empty({80, 96});
    flat.slice(0, 0, 40).normal_();
    flat.slice(0, 40).uniform_();
    return std::pair{flat.slice(0, 0, 40), flat.slice(0, 40)};
  });
  RecordingSink sink(1);
  replay(std::move(deferred.tape), &sink);
  EXPECT_EQ(sink.log, "store0 ");
  EXPECT_LT(sink.value_of(deferred.result.first).min().item<float>(), 0);
  EXPECT_GE(sink.value_of(deferred.result.second).min().item<float>(), 0);
}

TEST(TapeReplayTest, WhatIsNotInUseAnyMoreIsNotBuilt) {
  auto deferred = defer_construction(
      [] { return std::pair{torch::ones({80, 96}), torch::ones({90, 96})}; });
  deferred.result.first = at::Tensor();
  RecordingSink sink(1);
  replay(std::move(deferred.tape), &sink);
  EXPECT_EQ(sink.log, "store0 ");
  EXPECT_EQ(sink.value_of(deferred.result.second).numel(), 90 * 96);
}

class FailingSink : public RecordingSink {
 public:
  using RecordingSink::RecordingSink;
  void store(const c10::Storage&, c10::Storage) override {
    throw std::runtime_error("disk full");
  }
};

TEST(TapeReplayTest, AnErrorOfTheSinkLeavesTheGeneratorAsItWas) {
  torch::manual_seed(7);
  const auto expected = next_draws();
  torch::manual_seed(7);
  auto deferred = defer_construction([] { return torch::randn({80, 96}); });
  FailingSink sink(1);
  EXPECT_THROW(replay(std::move(deferred.tape), &sink), std::runtime_error);
  EXPECT_TRUE(have_same_bits(next_draws(), expected));
}

TEST(TapeReplayTest, AnErrorOfAnOperatorNamesIt) {
  auto deferred = defer_construction(
      [] { return torch::bernoulli(torch::full({80, 96}, 2.0)); });
  try {
    replay(std::move(deferred.tape));
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                testing::HasSubstr("aten::bernoulli"));
  }
}

}  // namespace
}  // namespace nfold
