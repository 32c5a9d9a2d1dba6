// GatheredParameters with an engine: what a scope shows, what it publishes,
// what it forbids.
#include "engine/engine_impl.h"
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Config gather_config(int stage, const std::string& more = "") {
  return config_of({.stage = stage,
                    .optimizer = kAdamW,
                    .zero = R"(, "stage3_param_persistence_threshold": 0)",
                    .more = more});
}

void for_stages(const std::function<void(int stage)>& body) {
  for (const int stage : {0, 2, 3}) {
    SCOPED_TRACE(stage);
    body(stage);
  }
}

TEST(EngineGather, AScopeAllowsRawAccess) {
  for_stages([](int stage) {
    const auto config = gather_config(stage);
    on_ranks(3, config, [&](World& /*world*/, Mesh& mesh) {
      Tower model(8);
      const auto expected = model->head->weight.detach().clone();
      Engine engine(model, mesh, config);
      const GatheredParameters scope(model->head->weight);
      const auto* data = model->head->weight.const_data_ptr<float>();
      for (std::int64_t i = 0; i < expected.numel(); ++i) {
        EXPECT_EQ(data[i], expected.const_data_ptr<float>()[i]);
      }
    });
  });
}

TEST(EngineGather, TheModifiersValuesBecomeThoseOfAllRanks) {
  for_stages([](int stage) {
    for (const int modifier : {0, 1}) {
      const auto config = gather_config(stage);
      on_ranks(2, config, [&](World& world, Mesh& mesh) {
        Tower model(8);
        const auto bias = model->head->bias.detach().clone();
        Engine engine(model, mesh, config);
        {
          const GatheredParameters scope(model->head->weight,
                                         {.modifier_rank = modifier});
          at::NoGradGuard no_grad;
          model->head->weight.fill_(world.rank() + 1);
        }
        const auto full = torch::full({3, 8}, modifier + 1.0);
        EXPECT_TRUE(torch::equal(model->head->weight.detach(), full));
        EXPECT_TRUE(torch::equal(
            safe_get_full_fp32_param(engine, model->head->weight), full));
        EXPECT_TRUE(torch::equal(model->head->bias.detach(), bias));
      });
    }
  });
}

TEST(EngineGather, MasterWeightsFollowAndOthersKeepTheirPrecision) {
  for_stages([](int stage) {
    const auto config = gather_config(stage, kBf16);
    on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
      Tower model(8);
      const auto bias = model->head->bias.detach().clone();
      Engine engine(model, mesh, config);
      {
        const GatheredParameters scope(model->head->weight,
                                       {.modifier_rank = 0});
        at::NoGradGuard no_grad;
        model->head->weight.zero_();
      }
      EXPECT_TRUE(
          torch::equal(safe_get_full_fp32_param(engine, model->head->weight),
                       torch::zeros({3, 8})));
      // Not rounded to bf16 by the way.
      EXPECT_TRUE(torch::equal(
          safe_get_full_fp32_param(engine, model->head->bias), bias));
    });
  });
}

TEST(EngineGather, AChangeWithoutModifierIsUndoneAndAnErrorOnAllRanks) {
  for_stages([](int stage) {
    const auto config = gather_config(stage);
    on_ranks(3, config, [&](World& world, Mesh& mesh) {
      Tower model(8);
      const auto before = model->head->weight.detach().clone();
      Engine engine(model, mesh, config);
      const auto error = error_of([&] {
        GatheredParameters scope(model->head->weight);
        if (world.rank() == 1) {
          at::NoGradGuard no_grad;
          model->head->weight.add_(1);
        }
        scope.close();
      });
      EXPECT_THAT(error, AllOf(HasSubstr("rank 1 changed head.weight"),
                               HasSubstr("modifier_rank")));
      EXPECT_TRUE(torch::equal(model->head->weight.detach(), before));
      train_step(engine, model->loss(world.rank()));
    });
  });
}

TEST(EngineGather, OtherParametersOfTheUnitMayNotBeChanged) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    const auto error = error_of([&] {
      GatheredParameters scope(model->head->weight, {.modifier_rank = 0});
      at::NoGradGuard no_grad;
      model->head->bias.add_(1);
      scope.close();
    });
    EXPECT_THAT(error, AllOf(HasSubstr("changed head.bias"),
                             HasSubstr("that was not opened for it")));
  });
}

TEST(EngineGather, AScopeOfTheWholeModelTakesRepetitionsAndForeignTensors) {
  for_stages([](int stage) {
    const auto config = gather_config(stage);
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Tower model(8);
      Engine engine(model, mesh, config);
      auto params = model->parameters();
      params.push_back(params.front());
      params.push_back(torch::ones({3}));
      {
        const GatheredParameters scope(params);
        EXPECT_GT(model->blocks[0]->parameters()[0].abs().sum().item<float>(),
                  0);
      }
      train_step(engine, model->loss(world.rank()));
    });
  });
}

TEST(EngineGather, NestedScopesOfOneUnitAreAnErrorThatNamesThem) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    const GatheredParameters outer(model->head->weight);
    EXPECT_THAT(
        error_of([&] { const GatheredParameters inner(model->head->weight); }),
        HasSubstr("head.weight"));
    // Another unit is another matter.
    const GatheredParameters other(model->blocks[0]->parameters());
  });
}

TEST(EngineGather, AModifierOutsideTheGroupIsAnError) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    for (const int modifier : {-1, 2}) {
      EXPECT_THAT(
          error_of([&] {
            const GatheredParameters scope(model->head->weight,
                                           {.modifier_rank = modifier});
          }),
          AllOf(HasSubstr("from 0 to 1"), HasSubstr(std::to_string(modifier))));
    }
  });
}

TEST(EngineGather, StepAndSettersWaitForTheEndOfTheScope) {
  for_stages([](int stage) {
    const auto config = gather_config(stage);
    on_ranks(2, config, [&](World& world, Mesh& mesh) {
      Tower model(8);
      const auto before = model->head->weight.detach().clone();
      Engine engine(model, mesh, config);
      engine.backward(model->loss(world.rank()));
      {
        const GatheredParameters scope(model->head->weight);
        const auto wait = HasSubstr("Close nfold::GatheredParameters first");
        EXPECT_THAT(error_of([&] { engine.step(); }), wait);
        EXPECT_THAT(error_of([&] {
                      safe_set_full_fp32_param(engine, model->head->weight,
                                               torch::zeros({3, 8}));
                    }),
                    wait);
      }
      EXPECT_TRUE(torch::equal(
          safe_get_full_fp32_param(engine, model->head->weight), before));
      EXPECT_TRUE(engine.step().is_boundary);
    });
  });
}

TEST(EngineGather, AnExceptionInsideStillClosesTheScope) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    EXPECT_THROW(
        {
          const GatheredParameters scope(model->head->weight);
          throw std::runtime_error("in the body");
        },
        std::runtime_error);
    EXPECT_TRUE(train_step(engine, model->loss(world.rank())).is_boundary);
  });
}

TEST(EngineGather, ADisabledScopeAndPlainTensorsDoNothing) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    { const GatheredParameters before_the_engine(model->head->weight); }
    Engine engine(model, mesh, config);
    const GatheredParameters scope(model->head->weight, {.enabled = false});
    EXPECT_NE(error_of([&] { model->head->weight.const_data_ptr<float>(); }),
              "");
  });
}

TEST(EngineGather, WritingOutsideOfAScopeNamesParameterAndRemedy) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& /*world*/, Mesh& mesh) {
    Tower model(8);
    Engine engine(model, mesh, config);
    at::NoGradGuard no_grad;
    EXPECT_THAT(error_of([&] { model->head->weight.add_(1); }),
                AllOf(HasSubstr("head.weight"), HasSubstr("aten::add_"),
                      HasSubstr("GatheredParameters")));
  });
}

TEST(EngineGather, UnshardModelGivesPlainTensorsThatKeepTies) {
  const auto config = gather_config(3);
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Tower model(8);
    model->register_parameter("tied", model->head->weight);
    Engine engine(model, mesh, config);
    train_step(engine, model->loss(world.rank()));
    const auto expected = safe_get_full_fp32_param(engine, model->head->weight);
    engine.unshard_model();
    EXPECT_TRUE(torch::equal(model->head->weight.detach(), expected));
    {
      at::NoGradGuard no_grad;
      model->head->weight.add_(1);
    }
    EXPECT_TRUE(
        torch::equal(model->named_parameters()["tied"].detach(), expected + 1));
    model->to(at::kDouble);  // a module like any other
  });
}

TEST(EngineGather, ExternalParametersAreCheckedAndNeedNothing) {
  Tower model(8);
  register_external_parameter(*model, model->head->weight);
  unregister_external_parameter(*model, model->head->weight);
  EXPECT_THAT(error_of([&] {
                register_external_parameter(*model, torch::ones({2}) * 2);
              }),
              HasSubstr("expected a parameter"));
}

}  // namespace
}  // namespace nfold::testing
