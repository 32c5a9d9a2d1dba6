// Where a scope of deferred construction begins and ends, and its options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <stdexcept>
#include <thread>

#include "param/construction_test.h"
#include "param/deferred_construction.h"

namespace nfold {
namespace {

TEST(ConstructionScopeTest, AfterAnExceptionNothingStaysBehind) {
  torch::manual_seed(7);
  const auto expected = next_draws();
  torch::manual_seed(7);
  at::Tensor left;
  EXPECT_THROW(defer_construction([&]() -> int {
                 left = torch::randn({80, 96});
                 ConstructionScope inner;
                 throw std::runtime_error("no such file");
               }),
               std::runtime_error);
  EXPECT_TRUE(torch::equal(next_draws(), expected));
  EXPECT_TRUE(has_memory(torch::randn({80, 96})));
  EXPECT_FALSE(has_memory(left));
  EXPECT_EQ(expect_same_tensor([] { return torch::randn({80, 96}); }), 1);
}

TEST(ConstructionScopeTest, NestedScopesJoinTheOutermost) {
  torch::manual_seed(7);
  ConstructionScope outer;
  const auto a = torch::randn({80, 96});
  auto inner = defer_construction([] { return torch::randn({80, 96}); });
  EXPECT_EQ(inner.tape, nullptr);
  EXPECT_FALSE(has_memory(materialize(std::move(inner))));
  const auto b = torch::randn({80, 96});
  EXPECT_FALSE(has_memory(b)) << "the inner scope has ended the outer one";
  replay(outer.finish());
  EXPECT_TRUE(has_memory(a) && has_memory(b));
}

TEST(ConstructionScopeTest, ADisabledScopeDoesNothing) {
  auto deferred = defer_construction([] { return torch::randn({80, 96}); },
                                     {.enabled = false, .dtype = at::kHalf});
  EXPECT_EQ(deferred.tape, nullptr);
  EXPECT_TRUE(has_memory(deferred.result));
  EXPECT_EQ(deferred.result.dtype(), torch::kFloat);
}

TEST(ConstructionScopeTest, InAPauseEverythingIsBuiltWithItsOwnNumbers) {
  const int num_deferred = expect_same_construction([] {
    NamedTensors result;
    result.emplace_back("a", torch::randn({80, 96}));
    {
      ConstructionPause pause;
      ConstructionPause inner;
      auto real = torch::randn({80, 96});
      real.data_ptr<float>()[5] = 7;
      result.emplace_back("b", real);
      result.emplace_back("c", result[0].second * 2);  // deferred all the same
      result[0].second[0].normal_();
      result.emplace_back("d", torch::rand({80, 96}));
      at::detail::getDefaultCPUGenerator()
          .get<at::CPUGeneratorImpl>()
          ->random();
    }
    result.emplace_back("e", torch::randn({80, 96}));
    return result;
  });
  EXPECT_EQ(num_deferred, 3);
}

TEST(ConstructionScopeTest, FactoriesGiveTheDtypeOfTheScope) {
  const auto deferred = defer_construction(
      [] {
        return std::vector<at::Tensor>{
            torch::nn::Linear(96, 96)->weight,
            torch::ones({80, 96}, torch::kDouble),
            torch::full({3}, 0.5),
            torch::arange(3.0),
            torch::randint(9, {80, 96}),
            torch::zeros({3}, torch::kLong),
            torch::empty({3}, torch::kBool),
            torch::tensor({0.5f}),
        };
      },
      {.dtype = torch::kBFloat16});
  std::vector<at::ScalarType> dtypes;
  for (const auto& tensor : deferred.result) {
    dtypes.push_back(tensor.scalar_type());
  }
  EXPECT_THAT(dtypes, testing::ElementsAre(torch::kBFloat16, torch::kBFloat16,
                                           torch::kBFloat16, torch::kBFloat16,
                                           torch::kLong, torch::kLong,
                                           torch::kBool, torch::kFloat));
}

TEST(ConstructionScopeTest, TheDtypeOfTheScopeIsLikeADefaultDtype) {
  torch::manual_seed(7);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kBFloat16));
  const auto expected =
      tensors_of_module(*torch::nn::TransformerEncoderLayer(96, 4));
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kFloat));
  torch::manual_seed(7);
  const auto actual = materialize(defer_construction(
      [] { return torch::nn::TransformerEncoderLayer(96, 4); },
      {.dtype = torch::kBFloat16}));
  expect_same(tensors_of_module(*actual), expected);
}

TEST(ConstructionScopeTest, FactoriesGiveTheDeviceOfTheScope) {
  const auto deferred = defer_construction(
      [] {
        return std::vector<at::Tensor>{
            torch::randn({80, 96}, torch::Device(torch::kCUDA, 0)),
            torch::ones({3}, torch::kCUDA), torch::empty({3}, torch::kMeta)};
      },
      {.device = torch::kCPU});
  EXPECT_TRUE(deferred.result[0].is_cpu());
  EXPECT_TRUE(deferred.result[1].is_cpu());
  EXPECT_TRUE(deferred.result[2].is_meta());
}

TEST(ConstructionScopeTest, ThreadsBuildTheSameAtTheSameTime) {
  const auto build = [] {
    torch::manual_seed(3);
    return torch::nn::Transformer(
        torch::nn::TransformerOptions(96, 4).dim_feedforward(128));
  };
  const auto expected = tensors_of_module(*build());
  std::vector<NamedTensors> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      result = tensors_of_module(*materialize(defer_construction(build)));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) expect_same(result, expected);
}

TEST(ConstructionScopeTest, OtherThreadsBuildEagerly) {
  ConstructionScope scope;
  bool is_real = false;
  std::thread([&] { is_real = has_memory(torch::ones({80, 96})); }).join();
  EXPECT_TRUE(is_real);
}

}  // namespace
}  // namespace nfold
