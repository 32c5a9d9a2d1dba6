#include "param/model_agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Every rank holds everything.
GroupsOf all_of(World& world) {
  return [&world](const Placement&) {
    return UnitGroups{.holders = &world.group()};
  };
}

TEST(ModelAgreementTest, EqualModelsAgreeWithoutACopy) {
  run_ranks(3, [](World& world) {
    torch::nn::Linear linear(4, 3);
    torch::NoGradGuard no_grad;
    for (auto& param : linear->parameters()) param.fill_(0.5);
    EXPECT_THAT(agree_on_model(all_of(world), *linear, collect_params(*linear)),
                IsEmpty());
  });
}

TEST(ModelAgreementTest, RankZerosValuesWinForParametersAndBuffers) {
  run_ranks(3, [](World& world) {
    torch::nn::BatchNorm1d norm(4);
    {
      torch::NoGradGuard no_grad;
      norm->weight.fill_(world.rank() + 1);
      norm->running_mean.fill_(world.rank() + 7);
    }
    const auto differing =
        agree_on_model(all_of(world), *norm, collect_params(*norm));
    EXPECT_THAT(differing, ElementsAre("weight", "running_mean"));
    EXPECT_TRUE(norm->weight.eq(1).all().item<bool>());
    EXPECT_TRUE(norm->running_mean.eq(7).all().item<bool>());
  });
}

TEST(ModelAgreementTest, AnotherShapeIsAnErrorOnEveryRankThatNamesIt) {
  std::atomic<int> num_errors = 0;
  run_ranks(3, [&](World& world) {
    torch::nn::Linear linear(4, world.rank() == 2 ? 5 : 3);
    try {
      agree_on_model(all_of(world), *linear, collect_params(*linear));
    } catch (const c10::ValueError& error) {
      ++num_errors;
      const std::string text = error.what_without_backtrace();
      EXPECT_THAT(text, HasSubstr("weight: [3, 4] Float"));
      EXPECT_THAT(text, HasSubstr("rank 2"));
      EXPECT_THAT(text, HasSubstr("weight: [5, 4] Float"));
    }
  });
  EXPECT_EQ(num_errors, 3);
}

TEST(ModelAgreementTest, FrozenOnOneRankOnlyIsAnError) {
  std::atomic<int> num_errors = 0;
  run_ranks(2, [&](World& world) {
    torch::nn::Linear linear(4, 3);
    linear->bias.set_requires_grad(world.rank() == 0);
    try {
      agree_on_model(all_of(world), *linear, collect_params(*linear));
    } catch (const c10::ValueError& error) {
      ++num_errors;
      EXPECT_THAT(error.what_without_backtrace(), HasSubstr("bias"));
    }
  });
  EXPECT_EQ(num_errors, 2);
}

TEST(ModelAgreementTest, OneRankMoreParametersIsAnError) {
  std::atomic<int> num_errors = 0;
  run_ranks(2, [&](World& world) {
    torch::nn::Linear linear(
        torch::nn::LinearOptions(4, 3).bias(world.rank() == 0));
    try {
      agree_on_model(all_of(world), *linear, collect_params(*linear));
    } catch (const c10::ValueError& error) {
      ++num_errors;
      EXPECT_THAT(error.what_without_backtrace(), HasSubstr("nothing more"));
    }
  });
  EXPECT_EQ(num_errors, 2);
}

}  // namespace
}  // namespace nfold
