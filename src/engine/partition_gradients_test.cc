// Gradients of the user's own backward, summed at their owners.
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::int64_t> kSizes{0, 1, 2, 7, 8, 1023};

// What this rank owns of each parameter, from a tensor of the whole.
at::Tensor local_of(Engine& engine, const at::Tensor& param,
                    const at::Tensor& whole) {
  // The value of a parameter is set and read back locally.
  const auto before = safe_get_full_fp32_param(engine, param);
  safe_set_full_fp32_param(engine, param, whole);
  auto local = safe_get_local_fp32_param(engine, param).clone();
  safe_set_full_fp32_param(engine, param, before);
  return local;
}

TEST(PartitionGradientsTest, EveryRankGetsItsElementsOfTheSum) {
  for (const int stage : {0, 2, 3}) {
    for (const int num_ranks : {1, 2, 3, 4}) {
      const auto config =
          config_of({.stage = stage,
                     .zero = R"(, "stage3_param_persistence_threshold": 0)"});
      on_ranks(num_ranks, config, [&](World& world, Mesh& mesh) {
        Vectors model(kSizes);
        Engine engine(model, mesh, config);
        std::vector<at::Tensor> buffers(kSizes.size());
        for (int round = 0; round < 2; ++round) {
          model->loss(world.rank()).backward();
          partition_gradients(engine, model->weights, buffers, round == 1);
          for (std::size_t i = 0; i < kSizes.size(); ++i) {
            EXPECT_FALSE(model->weights[i].grad().defined());
            const auto sum =
                VectorsImpl::mean_gradient(i, kSizes[i], 0, num_ranks) *
                (num_ranks * (round + 1));
            EXPECT_TRUE(torch::allclose(
                buffers[i], local_of(engine, model->weights[i], sum), 1e-6))
                << "stage " << stage << ", w" << i;
          }
        }
        // The engine's own gradients are another matter.
        train_step(engine, model->loss(world.rank()));
      });
    }
  }
}

TEST(PartitionGradientsTest, BuffersMayBeLargerAndOfAnotherDtype) {
  const auto config = config_of({.stage = 3, .more = kBf16});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(kSizes);
    Engine engine(model, mesh, config);
    std::vector<at::Tensor> buffers;
    for (const auto size : kSizes) {
      buffers.push_back(torch::full({size + 40}, 9.0, at::kDouble));
    }
    model->loss(world.rank()).backward();
    partition_gradients(engine, model->weights, buffers);
    for (std::size_t i = 0; i < kSizes.size(); ++i) {
      const auto sum = VectorsImpl::mean_gradient(i, kSizes[i], 0, 2) * 2;
      const auto local = local_of(engine, model->weights[i], sum);
      EXPECT_TRUE(same_bits(buffers[i].narrow(0, 0, local.numel()),
                            local.to(at::kDouble)));
      EXPECT_TRUE(
          buffers[i].narrow(0, local.numel(), 40).eq(9).all().item<bool>());
    }
  });
}

TEST(PartitionGradientsTest, WrongArgumentsChangeNothing) {
  const auto config = config_of({.stage = 3});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(kSizes);
    Engine engine(model, mesh, config);
    const auto& weight = model->weights[5];
    const auto text_of = [&](const std::vector<at::Tensor>& params,
                             std::vector<at::Tensor> buffers,
                             bool accumulate = false) {
      return error_of(
          [&] { partition_gradients(engine, params, buffers, accumulate); });
    };
    EXPECT_THAT(text_of({weight}, {{}}),
                AllOf(HasSubstr("w5"), HasSubstr("found none")));
    model->loss(world.rank()).backward();
    EXPECT_THAT(text_of({weight}, {{}}, true),
                HasSubstr("no buffer to accumulate to"));
    EXPECT_THAT(text_of({weight}, {torch::empty({100})}),
                AllOf(HasSubstr("w5"), HasSubstr("[100]")));
    EXPECT_THAT(text_of({weight}, {torch::empty({2000}, at::kLong)}),
                HasSubstr("Long"));
    EXPECT_THAT(text_of({weight, weight}, {{}, {}}), HasSubstr("twice"));
    EXPECT_THAT(text_of({weight}, {}), HasSubstr("found 0"));
    EXPECT_THAT(text_of({torch::ones({3})}, {{}}),
                HasSubstr("not a parameter"));
    EXPECT_TRUE(weight.grad().defined());
  });
}

}  // namespace
}  // namespace nfold::testing
