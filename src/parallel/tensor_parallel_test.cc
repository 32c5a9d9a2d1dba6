#include "nfold/tensor_parallel.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "nfold/activation_checkpoint.h"
#include "nfold/differentiable_collectives.h"
#include "parallel/parallel_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

// up -> tanh -> down, as every block of a transformer has it.
struct TwoLayersImpl : public torch::nn::Module {
  TwoLayersImpl(Group* group, bool is_transposed, bool has_bias)
      : up(register_module(
            "up", ColumnParallelLinear(
                      ParallelLinearOptions{.in = 6,
                                            .out = 24,
                                            .has_bias = has_bias,
                                            .is_transposed = is_transposed},
                      group))),
        down(register_module(
            "down", RowParallelLinear(
                        ParallelLinearOptions{.in = 24,
                                              .out = 6,
                                              .has_bias = has_bias,
                                              .is_transposed = is_transposed},
                        group))) {}

  at::Tensor forward(const at::Tensor& x) {
    return down->forward(up->forward(x).tanh());
  }

  ColumnParallelLinear up;
  RowParallelLinear down;
};
TORCH_MODULE(TwoLayers);

// Every test below runs with 1, 2, 3 and 4 ranks.
class TensorParallel : public ::testing::TestWithParam<int> {
 protected:
  void on_ranks(const std::function<void(World&)>& body) {
    run_ranks(GetParam(), body);
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallel, ::testing::Values(1, 2, 3, 4));

TEST_P(TensorParallel, ColumnsThenRowsEqualThePlainLayers) {
  on_ranks([](World& world) {
    for (const bool is_transposed : {false, true}) {
      for (const bool has_bias : {false, true}) {
        Group* group = &world.group();
        const auto make = [&](Group* g) {
          return seeded([&] { return TwoLayers(g, is_transposed, has_bias); });
        };
        auto whole = make(nullptr);
        auto split = make(group);
        auto x = waves({2, 5, 6}, 1).requires_grad_();
        auto y = waves({2, 5, 6}, 1).requires_grad_();
        const auto expected = whole->forward(whole->forward(x));
        const auto found = split->forward(split->forward(y));
        expect_close(found, expected);
        expected.square().sum().backward();
        found.square().sum().backward();
        expect_close(y.grad(), x.grad());
        expect_same_gradients(group, *split, *whole);
      }
    }
  });
}

TEST_P(TensorParallel, CheckpointChangesNoBit) {
  on_ranks([](World& world) {
    auto model = seeded([&] { return TwoLayers(&world.group(), false, true); });
    const auto run = [&](bool is_checkpointed) {
      model->zero_grad();
      const auto block = [&](const at::Tensor& x) { return model->forward(x); };
      auto x = waves({5, 6}, 1).requires_grad_();
      const auto y = is_checkpointed ? checkpoint(block, x) : block(x);
      y.square().sum().backward();
      std::vector<at::Tensor> result = {y.detach(), x.grad()};
      for (const auto& param : model->parameters()) {
        result.push_back(param.grad().clone());
      }
      return result;
    };
    const auto plain = run(false);
    const auto dropped = run(true);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(at::equal(plain[i], dropped[i])) << i;
    }
  });
}

TEST_P(TensorParallel, FusedProjectionGivesEachRankItsPartOfEveryBlock) {
  on_ranks([](World& world) {
    // 3 blocks of 12 heads of 2 elements.
    const ParallelLinearOptions options{.in = 4, .out = 72, .num_blocks = 3};
    const auto make = [&](Group* g) {
      return seeded([&] { return ColumnParallelLinear(options, g); });
    };
    const auto x = waves({3, 4}, 1);
    const auto whole = make(nullptr)->forward(x).view({3, 3, 12, 2});
    const auto found = make(&world.group())->forward(x);
    const auto heads = whole.chunk(world.size(), 2);
    expect_close(found,
                 heads[static_cast<std::size_t>(world.rank())].flatten(1));
  });
}

TEST_P(TensorParallel, LayersThatShareAnInputCopyItOnce) {
  on_ranks([](World& world) {
    const ParallelLinearOptions options{
        .in = 4, .out = 12, .copies_input = false};
    const auto make = [&](Group* g) {
      return seeded([&] {
        return std::vector<ColumnParallelLinear>{
            ColumnParallelLinear(options, g), ColumnParallelLinear(options, g)};
      });
    };
    const auto run = [](std::vector<ColumnParallelLinear> layers, Group* g) {
      auto x = waves({3, 4}, 1).requires_grad_();
      const auto shared = copy_to_group(g, x);
      (layers[0]->forward(shared) * layers[1]->forward(shared))
          .square()
          .sum()
          .backward();
      return x.grad();
    };
    expect_close(run(make(&world.group()), &world.group()),
                 run(make(nullptr), nullptr));
    const auto index = static_cast<std::size_t>(Collective::kAllReduce);
    EXPECT_EQ(world.group().counts()[index].calls, world.size() > 1 ? 1 : 0);
  });
}

TEST_P(TensorParallel, EmbeddingEqualsThePlainOne) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    const auto make = [&](Group* g) {
      return seeded([&] {
        return VocabParallelEmbedding(
            VocabParallelEmbeddingOptions{.num_embeddings = 24,
                                          .embedding_dim = 5},
            g);
      });
    };
    auto whole = make(nullptr);
    auto split = make(group);
    EXPECT_EQ(split->weight().size(0), 24 / world.size());
    // Every row, and some of them twice.
    const auto tokens = at::arange(30, at::kLong).view({2, 15}).remainder(24);
    const auto expected = whole->forward(tokens);
    const auto found = split->forward(tokens);
    EXPECT_TRUE(at::equal(found, expected));
    const auto weight = waves({2, 15, 5}, 3);
    (expected * weight).sum().backward();
    (found * weight).sum().backward();
    expect_same_gradients(group, *split, *whole);
  });
}

TEST_P(TensorParallel, CrossEntropyEqualsThePlainOne) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    auto targets = at::arange(14, at::kLong).view({2, 7}) * 5 % 24;
    targets[0][3] = -100;
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const auto logits = (waves({2, 7, 24}, 2) * 6).to(dtype);
      auto whole = logits.clone().requires_grad_();
      auto part = part_of(group, logits, {.dim = 2}).clone().requires_grad_();
      const auto expected =
          vocab_parallel_cross_entropy(nullptr, whole, targets);
      EXPECT_TRUE(at::equal(
          expected.flatten(),
          at::cross_entropy_loss(whole.flatten(0, 1).to(at::kFloat),
                                 targets.flatten(), {}, at::Reduction::None)));
      const auto found = vocab_parallel_cross_entropy(group, part, targets);
      EXPECT_EQ(found.scalar_type(), at::kFloat);
      expect_close(found, expected);
      const auto weight = waves({2, 7}, 3);
      (expected * weight).sum().backward();
      (found * weight).sum().backward();
      EXPECT_EQ(part.grad().scalar_type(), dtype);
      expect_close(part.grad().to(at::kFloat),
                   part_of(group, whole.grad(), {.dim = 2}).to(at::kFloat),
                   dtype == at::kFloat ? 2e-6 : 8e-3);
    }
  });
}

TEST_P(TensorParallel, LargeLogitsDoNotOverflow) {
  on_ranks([](World& world) {
    const auto logits = at::tensor({-1e30, 3e4, 1e30, 2e4, 5.0, 6.0, 7.0, 8.0,
                                    9.0, 1.0, 2.0, 3.0})
                            .to(at::kFloat)
                            .view({1, 12});
    const auto part = part_of(&world.group(), logits, {.dim = 1});
    const auto loss = vocab_parallel_cross_entropy(&world.group(), part,
                                                   at::full({1}, 2, at::kLong));
    EXPECT_EQ(loss.item<float>(), 0);
  });
}

// The layer of docs/parallelism.md.
struct SplitScaleImpl : torch::nn::Module, TensorSplitModule {
  SplitScaleImpl(std::int64_t size, Group* group)
      : scale(register_parameter("scale",
                                 part_of(group, waves({size}, 9), {.dim = 0}))),
        is_split(group != nullptr && group->size() > 1) {}

  at::Tensor forward(const at::Tensor& x) { return x * scale; }

  std::optional<TensorSplit> split_of(const std::string& param) const override {
    if (!is_split || param != "scale") return std::nullopt;
    return TensorSplit{.dim = 0};
  }

  at::Tensor scale;
  bool is_split;
};
TORCH_MODULE(SplitScale);

// Also a parameter that is not split but used on a part: its gradient must be
// summed as that of an input is.
struct OwnLayersImpl : torch::nn::Module {
  explicit OwnLayersImpl(Group* g)
      : group(g),
        layers(register_module("layers", TwoLayers(g, false, true))),
        scale(register_module("scale", SplitScale(24, g))),
        gain(register_parameter("gain", at::full({1}, 1.5))) {}

  at::Tensor forward(const at::Tensor& x) {
    const auto inner = scale->forward(layers->up->forward(x));
    return layers->down->forward((inner * copy_to_group(group, gain)).tanh());
  }

  Group* group;
  TwoLayers layers;
  SplitScale scale;
  at::Tensor gain;
};
TORCH_MODULE(OwnLayers);

TEST_P(TensorParallel, LayersOfOnesOwnEqualThePlainOnes) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    // A nullptr as it stands would make an empty holder.
    Group* const nobody = nullptr;
    auto whole = seeded([&] { return OwnLayers(nobody); });
    auto split = seeded([&] { return OwnLayers(group); });
    const auto x = waves({5, 6}, 1);
    const auto expected = whole->forward(x);
    const auto found = split->forward(x);
    expect_close(found, expected);
    expected.square().sum().backward();
    found.square().sum().backward();
    expect_same_gradients(group, *split, *whole);
  });
}

TEST_P(TensorParallel, PartsJoinToTheWhole) {
  on_ranks([](World& world) {
    const auto whole = waves({24, 3, 36}, 4);
    for (const TensorSplit split :
         {TensorSplit{.dim = 0}, TensorSplit{.dim = 2, .num_blocks = 3},
          TensorSplit{.dim = 0, .num_blocks = 2}}) {
      const auto part = part_of(&world.group(), whole, split);
      EXPECT_EQ(part.numel() * world.size(), whole.numel());
      EXPECT_TRUE(at::equal(whole_of(&world.group(), part, split), whole));
    }
  });
}

TEST_P(TensorParallel, WholeModelCanBePutTogether) {
  on_ranks([](World& world) {
    const auto expected = seeded([] { return TwoLayers(nullptr, true, true); });
    const auto split =
        seeded([&] { return TwoLayers(&world.group(), true, true); });
    for (const auto& item : split->named_parameters()) {
      const auto cut = split_of(*split, item.key());
      const auto whole =
          cut ? whole_of(&world.group(), item.value(), *cut) : item.value();
      EXPECT_TRUE(at::equal(expected->named_parameters()[item.key()], whole))
          << item.key();
    }
  });
}

TEST(TensorParallelLayer, WithoutAGroupHasTheBitsOfTorch) {
  auto layer = seeded([] {
    return ColumnParallelLinear(ParallelLinearOptions{.in = 7, .out = 5},
                                nullptr);
  });
  auto linear = seeded([] { return torch::nn::Linear(7, 5); });
  const auto x = waves({3, 7}, 1);
  EXPECT_TRUE(at::equal(layer->forward(x), linear->forward(x)));
  const auto table = seeded([] {
    return VocabParallelEmbedding(
        VocabParallelEmbeddingOptions{.num_embeddings = 9, .embedding_dim = 4},
        nullptr);
  });
  const auto embedding = seeded([] { return torch::nn::Embedding(9, 4); });
  EXPECT_TRUE(at::equal(table->weight(), embedding->weight));
}

TEST(TensorParallelLayer, SaysWhatIsSplit) {
  run_ranks(2, [](World& world) {
    auto model = seeded([&] { return TwoLayers(&world.group(), false, true); });
    EXPECT_TRUE(model->up->placement_of("weight").is_tensor_split);
    EXPECT_TRUE(model->up->placement_of("bias").is_tensor_split);
    EXPECT_TRUE(model->down->placement_of("weight").is_tensor_split);
    EXPECT_FALSE(model->down->placement_of("bias").is_tensor_split);
    EXPECT_EQ(split_of(*model, "down.weight")->dim, 1);
    EXPECT_FALSE(split_of(*model, "down.bias").has_value());
    EXPECT_FALSE(split_of(*model, "none.weight").has_value());
    const auto plain = seeded([] { return TwoLayers(nullptr, false, true); });
    EXPECT_FALSE(plain->up->placement_of("weight").is_tensor_split);
  });
}

TEST(TensorParallelLayer, SizesThatDoNotDivideAreNamed) {
  run_ranks(2, [](World& world) {
    Group* group = &world.group();
    const auto who = c10::str("[rank ", world.rank(), "]");
    const auto column = text_of<c10::ValueError>([&] {
      ColumnParallelLinear(ParallelLinearOptions{.in = 4, .out = 7}, group);
    });
    EXPECT_THAT(column, HasSubstr(who));
    EXPECT_THAT(column, HasSubstr("7 do not divide by the 2 ranks"));
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  ColumnParallelLinear(
                      ParallelLinearOptions{.in = 4, .out = 8, .num_blocks = 3},
                      group);
                }),
                HasSubstr("8 outputs do not consist of num_blocks = 3"));
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  RowParallelLinear(ParallelLinearOptions{.in = 5, .out = 4},
                                    group);
                }),
                HasSubstr("5 do not divide by the 2 ranks"));
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  VocabParallelEmbedding(
                      VocabParallelEmbeddingOptions{.num_embeddings = 61,
                                                    .embedding_dim = 4},
                      group);
                }),
                HasSubstr("tokens of the vocabulary: 61 do not divide by the "
                          "2 ranks"));
  });
}

TEST(TensorParallelLayer, TokensOutsideOfTheVocabularyAreErrors) {
  run_ranks(2, [](World& world) {
    Group* group = &world.group();
    auto table = seeded([&] {
      return VocabParallelEmbedding(
          VocabParallelEmbeddingOptions{.num_embeddings = 8,
                                        .embedding_dim = 4},
          group);
    });
    EXPECT_THAT(text_of<c10::ValueError>(
                    [&] { table->forward(at::full({2}, 8, at::kLong)); }),
                HasSubstr("found 8, expected 0 to 7"));
    EXPECT_THROW(table->forward(at::full({2}, -1, at::kLong)), c10::ValueError);
    const auto logits = waves({2, 4}, 1).requires_grad_();
    EXPECT_THAT(text_of<c10::ValueError>([&] {
                  vocab_parallel_cross_entropy(group, logits,
                                               at::full({2}, 9, at::kLong));
                }),
                HasSubstr("target: found 9, expected 0 to 7"));
    EXPECT_THROW(
        vocab_parallel_cross_entropy(group, logits, at::zeros({3}, at::kLong)),
        c10::ValueError);
    const auto loss =
        vocab_parallel_cross_entropy(group, logits, at::zeros({2}, at::kLong));
    EXPECT_THROW(torch::autograd::grad({loss.sum()}, {logits}, {}, true,
                                       /*create_graph=*/true),
                 c10::NotImplementedError);
  });
}

}  // namespace
}  // namespace nfold
