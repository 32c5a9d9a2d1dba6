#include "param/param_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Parameters registered as given, tied or not.
struct Holder : torch::nn::Module {
  void add(const std::string& name, at::Tensor tensor,
           bool requires_grad = true) {
    register_parameter(name, std::move(tensor), requires_grad);
  }
};

std::string error_of(const torch::nn::Module& module) {
  try {
    collect_params(module);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(ParamStateTest, ParametersComeInOrderOfRegistration) {
  Holder module;
  module.add("b", torch::ones({2}));
  module.add("a", torch::ones({3}));
  const auto params = collect_params(module);
  ASSERT_EQ(params.size(), 2);
  EXPECT_EQ(params[0].name, "b");
  EXPECT_EQ(params[1].name, "a");
}

TEST(ParamStateTest, OneTensorUnderTwoNamesIsOneParameter) {
  Holder module;
  const auto weight = torch::ones({4, 2});
  module.add("embedding", weight);
  module.add("head", weight);
  const auto params = collect_params(module);
  ASSERT_EQ(params.size(), 1);
  EXPECT_THAT(params[0].names, ElementsAre("embedding", "head"));
  EXPECT_EQ(params[0].tensors.size(), 1);
}

TEST(ParamStateTest, TwoTensorsOfOneStorageAreOneParameter) {
  Holder module;
  const auto weight = torch::ones({4, 2});
  module.add("embedding", weight);
  module.add("head", weight.detach());
  const auto params = collect_params(module);
  ASSERT_EQ(params.size(), 1);
  EXPECT_EQ(params[0].tensors.size(), 2);
}

TEST(ParamStateTest, PartialOverlapIsAnErrorThatNamesBoth) {
  Holder module;
  const auto storage = torch::ones({8});
  module.add("left", storage.narrow(0, 0, 5));
  module.add("right", storage.narrow(0, 4, 4));
  EXPECT_THAT(error_of(module), HasSubstr("left"));
  EXPECT_THAT(error_of(module), HasSubstr("right"));
}

TEST(ParamStateTest, DisjointViewsOfOneStorageAreSeparateParameters) {
  Holder module;
  const auto storage = torch::ones({8});
  module.add("left", storage.narrow(0, 0, 4));
  module.add("right", storage.narrow(0, 4, 4));
  EXPECT_EQ(collect_params(module).size(), 2);
}

TEST(ParamStateTest, TiesThatDisagreeOnRequiresGradAreAnError) {
  Holder module;
  const auto weight = torch::ones({4});
  module.add("trained", weight);
  module.add("frozen", weight.detach(), false);
  EXPECT_THAT(error_of(module), HasSubstr("requires_grad alike"));
}

TEST(ParamStateTest, EmptyParametersAreNeverTied) {
  Holder module;
  module.add("a", torch::empty({0}));
  module.add("b", torch::empty({0}));
  EXPECT_EQ(collect_params(module).size(), 2);
}

// Says what it is told of everything below.
struct Placed : torch::nn::Module, PlacedModule {
  explicit Placed(Placement placement) : placement(placement) {}
  Placement placement_of(const std::string& param) const override {
    asked.push_back(param);
    return placement;
  }
  Placement placement;
  mutable std::vector<std::string> asked;
};

TEST(ParamStateTest, PlacementsOfTheModulesAboveAddUp) {
  auto root = std::make_shared<torch::nn::Module>("root");
  auto experts = std::make_shared<Placed>(Placement{.expert_size = 4});
  auto split = std::make_shared<Placed>(Placement{.is_tensor_split = true});
  root->register_parameter("gate", torch::ones({2}));
  root->register_module("experts", experts);
  experts->register_parameter("scale", torch::ones({2}));
  experts->register_module("3", split);
  split->register_parameter("weight", torch::ones({2}));
  split->register_module("norm",
                         torch::nn::LayerNorm(std::vector<int64_t>{2}).ptr());
  std::map<std::string, Placement> found;
  for (const auto& param : collect_params(*root)) {
    found[param.name] = param.placement;
  }
  const Placement both{.expert_size = 4, .is_tensor_split = true};
  EXPECT_EQ(found["gate"], Placement());
  EXPECT_EQ(found["experts.scale"], (Placement{.expert_size = 4}));
  EXPECT_EQ(found["experts.3.weight"], both);
  EXPECT_EQ(found["experts.3.norm.bias"], both);
  EXPECT_THAT(experts->asked, ::testing::Contains("3.norm.weight"));
  EXPECT_THAT(split->asked, ::testing::Contains("norm.weight"));
}

TEST(ParamStateTest, TiesAcrossPlacementsAreAnError) {
  auto root = std::make_shared<torch::nn::Module>("root");
  auto experts = std::make_shared<Placed>(Placement{.expert_size = 2});
  const auto weight = torch::ones({4});
  root->register_parameter("head", weight);
  root->register_module("experts", experts);
  experts->register_parameter("weight", weight);
  const auto text = error_of(*root);
  EXPECT_THAT(text, HasSubstr("head"));
  EXPECT_THAT(text, HasSubstr("experts.weight"));
  EXPECT_THAT(text, HasSubstr("placement_of"));
}

}  // namespace
}  // namespace nfold
