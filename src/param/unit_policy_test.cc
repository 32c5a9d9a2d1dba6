#include "param/unit_policy.h"

#include <gtest/gtest.h>

namespace nfold {
namespace {

constexpr auto kFloat = c10::ScalarType::Float;
constexpr auto kBFloat16 = c10::ScalarType::BFloat16;

std::vector<std::vector<std::size_t>> members(
    const std::vector<UnitPlan>& plans) {
  std::vector<std::vector<std::size_t>> result;
  for (const auto& plan : plans) result.push_back(plan.params);
  return result;
}

using Members = std::vector<std::vector<std::size_t>>;

TEST(UnitPolicyTest, ContainerElementIsThePathUpToTheFirstNumber) {
  EXPECT_EQ(container_element_of("transformer.h.12.mlp.0.weight"),
            "transformer.h.12");
  EXPECT_EQ(container_element_of("0.weight"), "0");
  EXPECT_EQ(container_element_of("wte.weight"), "");
  EXPECT_EQ(container_element_of("list.3"), "");
}

TEST(UnitPolicyTest, EachLargeContainerElementIsAUnit) {
  const auto plans = plan_units({{"wte", 100000, kFloat, true},
                                 {"h.0.a", 90000, kFloat, true},
                                 {"h.0.b", 10, kFloat, true},
                                 {"h.1.a", 90000, kFloat, true},
                                 {"h.1.b", 10, kFloat, true},
                                 {"head", 100000, kFloat, true}});
  EXPECT_EQ(members(plans), (Members{{0, 5}, {1, 2}, {3, 4}}));
  EXPECT_EQ(plans[0].name, "wte ... head");
  EXPECT_EQ(plans[1].name, "h.0");
}

TEST(UnitPolicyTest, SmallContainerElementsShareAUnit) {
  const auto plans = plan_units({{"0.weight", 64, kFloat, true},
                                 {"1.weight", 64, kFloat, true},
                                 {"2.weight", 64, kFloat, true}});
  EXPECT_EQ(members(plans), (Members{{0, 1, 2}}));
}

TEST(UnitPolicyTest, RestIsBoundedAndALargerParameterStandsAlone) {
  UnitPolicyOptions options;
  options.max_rest_numel = 100;
  const auto plans = plan_units({{"a", 60, kFloat, true},
                                 {"b", 40, kFloat, true},
                                 {"c", 1, kFloat, true},
                                 {"d", 500, kFloat, true},
                                 {"e", 7, kFloat, true}},
                                options);
  EXPECT_EQ(members(plans), (Members{{0, 1}, {2}, {3}, {4}}));
}

TEST(UnitPolicyTest, DtypeAndRequiresGradSeparateUnits) {
  const auto plans = plan_units({{"h.0.a", 70000, kFloat, true},
                                 {"h.0.frozen", 70000, kFloat, false},
                                 {"h.0.low", 70000, kBFloat16, true},
                                 {"h.0.b", 1, kFloat, true}});
  EXPECT_EQ(members(plans), (Members{{0, 3}, {1}, {2}}));
  EXPECT_EQ(plans[1].name, "h.0 (frozen)");
}

TEST(UnitPolicyTest, PlacementSeparatesUnits) {
  const auto plans =
      plan_units({{"h.0.gate", 90000, kFloat, true, {}},
                  {"h.0.experts.2.w", 90000, kFloat, true, {.expert_size = 2}},
                  {"h.0.fc", 90000, kFloat, true, {.is_tensor_split = true}},
                  {"h.0.experts.2.v", 90000, kFloat, true, {.expert_size = 2}},
                  {"h.0.bias", 10, kFloat, true, {}}});
  EXPECT_EQ(members(plans), (Members{{0, 4}, {1, 3}, {2}}));
}

TEST(UnitPolicyTest, BoundsShrinkWithTheModel) {
  EXPECT_EQ(unit_policy_options(1 << 30).max_rest_numel, 1 << 24);
  EXPECT_EQ(unit_policy_options(1 << 30).min_element_numel, 1 << 16);
  EXPECT_EQ(unit_policy_options(6400).max_rest_numel, 1600);
  EXPECT_EQ(unit_policy_options(6400).min_element_numel, 100);
}

TEST(UnitPolicyTest, EmptyModelHasNoUnits) {
  EXPECT_TRUE(plan_units({}).empty());
}

}  // namespace
}  // namespace nfold
