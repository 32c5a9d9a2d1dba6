// An optimizer that does nothing, handed to the engine.
#include "engine/engine_test.h"
#include "nfold/dummy_optim.h"

namespace nfold::testing {
namespace {

using ::testing::HasSubstr;

EngineOptions with_dummy() {
  EngineOptions options;
  options.optimizer_factory =
      [](std::vector<torch::optim::OptimizerParamGroup> groups) {
        return std::make_unique<DummyOptim>(std::move(groups));
      };
  return options;
}

TEST(DummyOptimizer, IsAcceptedAtStage3AndLeavesParametersAsTheyAre) {
  const auto config = config_of({.stage = 3, .optimizer = ""});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{33, 8});
    Engine engine(model, mesh, config, with_dummy());
    const auto report = train_step(engine, model->loss(world.rank()));
    EXPECT_GT(report.grad_norm, 0);
    EXPECT_EQ(engine.memory().optimizer_bytes, 0);
    engine.unshard_model();
    EXPECT_TRUE(same_bits(model->weights[0], VectorsImpl::initial(0, 33)));
  });
}

TEST(DummyOptimizer, IsAnErrorAtTheOtherStages) {
  for (const int stage : {0, 1, 2}) {
    const auto config = config_of({.stage = stage, .optimizer = ""});
    on_ranks(1, config, [&](World&, Mesh& mesh) {
      Vectors model(std::vector<std::int64_t>{8});
      EXPECT_THAT(
          error_of([&] { Engine(model, mesh, config, with_dummy()); }),
          HasSubstr(fmt::format("stage {}: expected an optimizer", stage)));
    });
  }
}

}  // namespace
}  // namespace nfold::testing
