// Which parameters have no memory.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

TEST(InactiveParams, AreThoseThatAreShardedAndNotGathered) {
  const auto config = config_of(
      {.stage = 3, .zero = R"(, "stage3_param_persistence_threshold": 0)"});
  on_ranks(2, config, [&](World&, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{33, 8});
    EXPECT_TRUE(get_inactive_params(model->parameters()).empty());
    const Engine engine(model, mesh, config);
    auto given = model->parameters();
    given.push_back(torch::ones({3}));
    given.emplace_back();
    const auto inactive = get_inactive_params(given);
    ASSERT_EQ(inactive.size(), 2);
    EXPECT_TRUE(inactive[0].is_same(model->weights[0]));
    {
      const GatheredParameters scope(model->parameters());
      EXPECT_TRUE(get_inactive_params(model->parameters()).empty());
    }
    EXPECT_EQ(get_inactive_params(model->parameters()).size(), 2);
  });
}

TEST(InactiveParams, AreNoneAtOtherStages) {
  const auto config = config_of({.stage = 2});
  on_ranks(2, config, [&](World&, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{33, 8});
    const Engine engine(model, mesh, config);
    EXPECT_TRUE(get_inactive_params(model->parameters()).empty());
  });
}

}  // namespace
}  // namespace nfold::testing
