// The engine clips as the functions for loops without an engine do.
#include "engine/engine_test.h"
#include "nfold/clip.h"
#include "nfold/norms.h"

namespace nfold::testing {
namespace {

TEST(EngineClipping, IsThatOfClipGradNormOnOneProcess) {
  const std::vector<std::int64_t> sizes{33, 8, 100};
  Vectors plain(sizes);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    plain->weights[i].mutable_grad() =
        VectorsImpl::mean_gradient(i, sizes[i], 0, 2);
  }
  const double norm = clip_grad_norm(plain->weights, 0.5);
  ASSERT_GT(norm, 0.5);
  for (const auto& weight : plain->weights) {
    weight.detach().sub_(weight.grad(), 0.25);
  }

  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(stage);
    const auto config = config_of({.stage = stage, .clipping = "0.5"});
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Vectors model(sizes);
      Engine engine(model, mesh, config);
      const auto report = train_step(engine, model->loss(world.rank()));
      EXPECT_DOUBLE_EQ(report.grad_norm, norm);
      EXPECT_NEAR(report.clipped_grad_norm, 0.5, 1e-6);
      engine.unshard_model();
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        EXPECT_TRUE(
            torch::allclose(model->weights[i], plain->weights[i], 1e-6, 1e-7));
      }
    });
  }
}

// -1 for an invalid norm would scale by a negative number; infinity skips.
TEST(EngineClipping, SkipsWhatTheOverflowCheckFinds) {
  const auto config = config_of({.stage = 2, .clipping = "0.5"});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{8});
    Engine engine(model, mesh, config);
    auto loss = model->loss(0);
    if (world.rank() == 1) loss = loss * std::nan("");
    const auto report = train_step(engine, loss);
    EXPECT_TRUE(report.is_skipped);
    EXPECT_FALSE(is_valid_norm(report.grad_norm));
    EXPECT_TRUE(same_bits(model->weights[0], VectorsImpl::initial(0, 8)));
  });
}

}  // namespace
}  // namespace nfold::testing
