#include "nfold/model_parallel.h"

#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

// Splits its weight, keeps its bias whole.
struct SplitLayer : torch::nn::Module, PlacedModule {
  SplitLayer() {
    register_parameter("weight", torch::zeros({2}));
    register_parameter("bias", torch::zeros({2}));
  }
  Placement placement_of(const std::string& param) const override {
    return {.is_tensor_split = param == "weight"};
  }
};

struct ExpertLayer : torch::nn::Module, PlacedModule {
  ExpertLayer() {
    register_module("split", std::make_shared<SplitLayer>());
    register_module("gate", torch::nn::Linear(2, 2).ptr());
  }
  Placement placement_of(const std::string& param) const override {
    return {.expert_size = param.starts_with("gate") ? 1 : 4};
  }
};

struct Model : torch::nn::Module {
  Model() { register_module("experts", std::make_shared<ExpertLayer>()); }
};

TEST(ModelParallelParameter, IsWhatItsModulesSayTogether) {
  const Model model;
  EXPECT_TRUE(is_model_parallel_parameter(model, "experts.split.weight"));
  EXPECT_FALSE(is_model_parallel_parameter(model, "experts.split.bias"));
  EXPECT_FALSE(is_model_parallel_parameter(model, "experts.gate.weight"));
  EXPECT_THROW(is_model_parallel_parameter(model, "experts.none"),
               c10::ValueError);
}

TEST(PlacementsOf, AreInTheOrderOfParameters) {
  const Model model;
  const std::vector<Placement> expected{
      {.expert_size = 4, .is_tensor_split = true}, {.expert_size = 4}, {}, {}};
  EXPECT_EQ(placements_of(model), expected);
  EXPECT_EQ(placements_of(model).size(), model.parameters().size());
}

}  // namespace
}  // namespace nfold
