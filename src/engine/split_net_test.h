// File: split_net_test.h
//
// A small language model whose layers are split over a tensor group and whose
// sequences are split over a sequence group, and its training over ranks as
// threads: what the tests compare for different sizes of the groups.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/engine_test.h"
#include "nfold/differentiable_collectives.h"
#include "nfold/sequence_parallel.h"
#include "nfold/tensor_parallel.h"

namespace nfold::testing {

// Numbers of ranks along each axis.
struct Axes {
  int data = 1;
  int sequence = 1;
  int tensor = 1;

  int num_ranks() const { return data * sequence * tensor; }
};

inline constexpr std::int64_t kNetVocabulary = 24;
inline constexpr std::int64_t kNetWidth = 16;
inline constexpr std::int64_t kNetHeads = 4;
inline constexpr std::int64_t kNetLength = 8;

inline ParallelLinearOptions net_layer(std::int64_t in, std::int64_t out) {
  return ParallelLinearOptions{.in = in, .out = out};
}

// Attention and two more layers, each added to its input.
struct SplitBlockImpl : torch::nn::Module {
  SplitBlockImpl(Group* tensor, Group* sequence)
      : sequence_group(sequence),
        num_heads(size_per_rank(tensor, "heads", kNetHeads)) {
    auto qkv_options = net_layer(kNetWidth, 3 * kNetWidth);
    qkv_options.num_blocks = 3;
    qkv = register_module("qkv", ColumnParallelLinear(qkv_options, tensor));
    out = register_module(
        "out", RowParallelLinear(net_layer(kNetWidth, kNetWidth), tensor));
    norm = register_module(
        "norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kNetWidth})));
    up = register_module(
        "up", ColumnParallelLinear(net_layer(kNetWidth, 32), tensor));
    down = register_module("down",
                           RowParallelLinear(net_layer(32, kNetWidth), tensor));
  }

  at::Tensor forward(const at::Tensor& x) {
    const auto heads = qkv->forward(x)
                           .unflatten(-1, {3, num_heads, -1})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
    const auto attended = sequence_parallel_attention(
        sequence_group, heads[0], heads[1], heads[2],
        [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
          return at::scaled_dot_product_attention(q, k, v, {}, 0, true);
        });
    const auto y = x + out->forward(attended.transpose(1, 2).flatten(2));
    return y + down->forward(torch::tanh(up->forward(norm(y))));
  }

  Group* sequence_group;
  std::int64_t num_heads;
  ColumnParallelLinear qkv{nullptr};
  RowParallelLinear out{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  ColumnParallelLinear up{nullptr};
  RowParallelLinear down{nullptr};
};
TORCH_MODULE(SplitBlock);

struct SplitNetImpl : torch::nn::Module {
  SplitNetImpl(Group* tensor, Group* sequence)
      : tensor_group(tensor), sequence_group(sequence) {
    const VocabParallelEmbeddingOptions options{
        .num_embeddings = kNetVocabulary, .embedding_dim = kNetWidth};
    table = register_module("table", VocabParallelEmbedding(options, tensor));
    places =
        register_module("places", torch::nn::Embedding(kNetLength, kNetWidth));
    register_module("blocks", blocks);
    for (int i = 0; i < 2; ++i) blocks->push_back(SplitBlock(tensor, sequence));
  }

  // Of a batch that depends on the seed. The head is tied to the table.
  at::Tensor loss(std::int64_t seed) {
    const auto whole =
        (torch::arange(2 * (kNetLength + 1)) * (seed % 11 + 5) + seed)
            .remainder(kNetVocabulary)
            .view({2, kNetLength + 1});
    const auto tokens =
        split_sequence(sequence_group, whole.slice(1, 0, kNetLength));
    const auto targets = split_sequence(sequence_group, whole.slice(1, 1));
    const auto begin = sequence_offset(sequence_group, tokens.size(1));
    auto x = table->forward(tokens) +
             places(torch::arange(begin, begin + tokens.size(1)));
    for (const auto& block : *blocks) {
      x = block->as<SplitBlock>()->forward(x);
    }
    const auto logits =
        at::linear(copy_to_group(tensor_group, x), table->weight());
    return mean_over_sequence(
        sequence_group,
        vocab_parallel_cross_entropy(tensor_group, logits, targets), targets);
  }

  Group* tensor_group;
  Group* sequence_group;
  VocabParallelEmbedding table{nullptr};
  torch::nn::Embedding places{nullptr};
  torch::nn::ModuleList blocks;
};
TORCH_MODULE(SplitNet);

// Adam with an epsilon that keeps it from blowing the rounding of gradients
// that ought to be zero up to whole steps.
inline constexpr char kCalmAdamW[] =
    R"({"type": "AdamW",
        "params": {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}})";

inline Config split_config(int stage, const Axes& axes,
                           const std::string& more = "") {
  return config_of(
      {.stage = stage,
       .optimizer = kCalmAdamW,
       .zero = stage == 3 ? R"(, "stage3_param_persistence_threshold": 0)" : "",
       .more = fmt::format(R"(, "tensor_parallel_size": {},
                                "sequence_parallel_size": {})",
                           axes.tensor, axes.sequence) +
               more,
       .clipping = "0.3"});
}

struct SplitRun {
  std::vector<float> losses;       // of the first data rank
  std::vector<double> norms;       // before clipping
  std::vector<at::Tensor> params;  // whole, fp32
};

// Trains the net, built by init with random values that depend on nothing but
// the seed.
inline SplitRun train_split(const Config& config, const Axes& axes,
                            int num_steps) {
  SplitRun run;
  on_ranks(axes.num_ranks(), config, [&](World& world, Mesh& mesh) {
    Group* tensor = axes.tensor > 1 ? &mesh.group("tensor_parallel") : nullptr;
    Group* sequence =
        axes.sequence > 1 ? &mesh.group("sequence_parallel") : nullptr;
    auto net = init(mesh, config, [&] {
      torch::manual_seed(5);
      return SplitNet(tensor, sequence);
    });
    Engine engine(net, mesh, config);
    for (int step = 0; step < num_steps; ++step) {
      const auto loss = net->loss(step * axes.data + mesh.data_parallel_rank());
      const auto report = train_step(engine, loss);
      if (world.rank() != 0) continue;
      run.losses.push_back(loss.item<float>());
      run.norms.push_back(report.grad_norm);
    }
    for (const auto& item : net->named_parameters()) {
      auto value = safe_get_full_fp32_param(engine, item.value());
      if (const auto cut = split_of(*net, item.key())) {
        value = whole_of(tensor, value, *cut);
      }
      if (world.rank() == 0) run.params.push_back(value);
    }
  });
  return run;
}

inline void expect_near_split(const SplitRun& actual, const SplitRun& expected,
                              double tolerance) {
  expect_near_curves(actual, expected, tolerance);
  ASSERT_EQ(actual.params.size(), expected.params.size());
  for (std::size_t i = 0; i < expected.params.size(); ++i) {
    ASSERT_EQ(actual.params[i].sizes(), expected.params[i].sizes());
    EXPECT_LE((actual.params[i] - expected.params[i]).norm().item<double>(),
              tolerance * expected.params[i].norm().item<double>())
        << "parameter " << i;
  }
}

}  // namespace nfold::testing
