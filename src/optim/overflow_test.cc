#include "nfold/overflow.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "nfold/norms.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

at::Tensor param_with(const at::Tensor& grad) {
  auto param = at::zeros(grad.sizes()).requires_grad_();
  param.mutable_grad() = grad;
  return param;
}

at::Tensor sparse_of(const std::vector<float>& values) {
  const auto num_values = static_cast<std::int64_t>(values.size());
  return at::sparse_coo_tensor(at::zeros({1, num_values}, at::kLong),
                               at::tensor(values), {4});
}

TEST(HasInfOrNan, TestsElementsNotTheirSum) {
  // Their fp32 sum is infinite.
  EXPECT_FALSE(has_inf_or_nan(at::tensor({3e38F, 3e38F})));
  EXPECT_TRUE(has_inf_or_nan(at::tensor({kInfinite, -kInfinite})));
  EXPECT_TRUE(has_inf_or_nan(at::tensor({1.0F, kNotANumber})));
  EXPECT_TRUE(has_inf_or_nan(at::tensor({-kInfinite})));
  EXPECT_TRUE(has_inf_or_nan(at::tensor({-kInfinite}).to(at::kBFloat16)));
}

TEST(HasInfOrNan, OfAnyLayoutAndDtype) {
  EXPECT_FALSE(has_inf_or_nan(at::zeros({0})));
  EXPECT_FALSE(has_inf_or_nan(at::ones({2}, at::kLong)));
  const auto complex = at::zeros({2}, at::kComplexFloat);
  EXPECT_FALSE(has_inf_or_nan(complex));
  at::view_as_real(complex)[1][1] = kNotANumber;
  EXPECT_TRUE(has_inf_or_nan(complex));
  const auto matrix = at::zeros({3, 4});
  EXPECT_FALSE(has_inf_or_nan(matrix.t()));
  matrix[1][2] = kInfinite;
  EXPECT_TRUE(has_inf_or_nan(matrix.t()));
  // Not coalesced: both values are at one index.
  EXPECT_FALSE(has_inf_or_nan(sparse_of({1, 2})));
  EXPECT_TRUE(has_inf_or_nan(sparse_of({1, kNotANumber})));
  EXPECT_TRUE(has_inf_or_nan(matrix.to_sparse_csr()));
}

TEST(CheckOverflow, LooksAtStoredOrAtGivenGroups) {
  const auto fine = param_with(at::tensor({3e38F, 3e38F}));
  const auto broken = param_with(at::tensor({1.0F, kInfinite}));
  CheckOverflow check({{{fine, at::zeros({2})}}, {{fine}}});
  EXPECT_FALSE(check.has_moe_params());
  EXPECT_FALSE(check.check());
  EXPECT_TRUE(check.check({{{fine}}, {{broken}}}));
  fine.grad()[0] = kNotANumber;
  EXPECT_TRUE(check.check());
  EXPECT_FALSE(check.check({}));
}

TEST(CheckOverflow, NotesExperts) {
  const auto param = at::zeros({2});
  const Placement expert{.expert_size = 2};
  EXPECT_TRUE(CheckOverflow({{{param, param}, {Placement(), expert}}})
                  .has_moe_params());
  EXPECT_FALSE(CheckOverflow({{{param}, {Placement()}}}).has_moe_params());
  EXPECT_THROW(CheckOverflow({{{param}, {Placement(), expert}}}),
               c10::ValueError);
}

// Rank 0 has a NaN, rank 1 has not; who hears of it depends on the groups.
TEST(CheckOverflow, ReachesTheRanksThatTheSettingsName) {
  run_ranks(2, [](World& world) {
    const bool is_first = world.rank() == 0;
    Group* both = &world.group();
    const std::vector<OverflowParamGroup> groups{
        {{param_with(at::tensor({is_first ? kNotANumber : 1.0F}))}}};
    const auto found = [&](const OverflowOptions& options) {
      return CheckOverflow(groups, options).check();
    };
    EXPECT_EQ(found({}), is_first);
    EXPECT_EQ(found({.world = both}), is_first);
    EXPECT_TRUE(found({.world = both, .is_reduce_scatter = true}));
    EXPECT_TRUE(found({.world = both, .is_backward_all_reduce = false}));
    EXPECT_TRUE(found({.model = both}));

    std::unique_ptr<Group> alone;
    for (int rank = 0; rank < 2; ++rank) {
      auto made = world.new_group(c10::str("alone", rank), {rank});
      if (made) alone = std::move(made);
    }
    EXPECT_EQ(found({.data = both, .model = alone.get()}), is_first);
    EXPECT_TRUE(found(
        {.data = both, .model = alone.get(), .is_backward_all_reduce = false}));

    auto experts = groups;
    experts[0].placements = {{.expert_size = 2}};
    EXPECT_TRUE(CheckOverflow(experts, {.expert = both}).check());
    // The world is asked, whatever the model group says.
    EXPECT_TRUE(found(
        {.world = both, .model = alone.get(), .is_reduce_scatter = true}));
  });
}

TEST(CheckOverflow, AMissingGroupIsNamed) {
  CheckOverflow check({}, {.is_reduce_scatter = true});
  EXPECT_THAT(text_of<c10::ValueError>([&] { check.check(); }),
              HasSubstr("OverflowOptions::world"));
  CheckOverflow experts({{{at::zeros({1})}, {{.expert_size = 2}}}});
  EXPECT_THAT(text_of<c10::ValueError>([&] { experts.check(); }),
              HasSubstr("OverflowOptions::expert"));
}

TEST(CheckOverflowUsingNorm, AnInvalidNormIsAnOverflow) {
  run_ranks(1, [](World& world) {
    CheckOverflow check({}, {.world = &world.group()});
    EXPECT_TRUE(check.check_using_norm({1, kInvalidNorm}));
    EXPECT_FALSE(check.check_using_norm({1, 2}));
    EXPECT_TRUE(check.check_using_norm({1, kInfinite}));
    EXPECT_TRUE(check.check_using_norm({kNotANumber}));
    EXPECT_TRUE(check.check_using_norm({-0.5}));
  });
}

TEST(CheckOverflowUsingNorm, ReachesExpertThenModelGroupOrWorld) {
  run_ranks(2, [](World& world) {
    const bool is_first = world.rank() == 0;
    const std::vector<double> norms{1.0, is_first ? -1.0 : 2.0};
    Group* both = &world.group();
    EXPECT_TRUE(CheckOverflow({}, {.world = both}).check_using_norm(norms));
    EXPECT_EQ(CheckOverflow({}, {.world = both}).check_using_norm(norms, false),
              is_first);
    EXPECT_TRUE(
        CheckOverflow({}, {.model = both}).check_using_norm(norms, false));
    CheckOverflow experts({{{at::zeros({1})}, {{.expert_size = 2}}}},
                          {.expert = both});
    EXPECT_TRUE(experts.check_using_norm(norms, false));
  });
}

}  // namespace
}  // namespace nfold
