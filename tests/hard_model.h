// File: hard_model.h
//
// A small model with everything that sharding gets wrong: tied embeddings, a
// weight used directly by a function, a layer called twice, a branch taken on
// even steps only, a frozen layer, an unused layer, activation checkpointing.
#pragma once

#include <torch/torch.h>

#include "nfold/activation_checkpoint.h"

namespace nfold::testing {

inline constexpr std::int64_t kVocabulary = 19;
inline constexpr std::int64_t kWidth = 12;

struct HardBlockImpl : torch::nn::Module {
  HardBlockImpl() {
    norm = register_module(
        "norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
    up = register_module("up", torch::nn::Linear(kWidth, 4 * kWidth));
    down = register_module("down", torch::nn::Linear(4 * kWidth, kWidth));
  }
  at::Tensor forward(const at::Tensor& x) {
    return x + down(torch::gelu(up(norm(x))));
  }
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear up{nullptr};
  torch::nn::Linear down{nullptr};
};
TORCH_MODULE(HardBlock);

struct HardModelImpl : torch::nn::Module {
  // The head is tied as a second tensor on the embedding's storage, or as the
  // embedding's tensor itself (which plain libtorch can train).
  explicit HardModelImpl(bool ties_by_storage = true) {
    embedding =
        register_module("embedding", torch::nn::Embedding(kVocabulary, kWidth));
    for (int i = 0; i < 3; ++i) blocks->push_back(HardBlock());
    register_module("blocks", blocks);
    twice = register_module("twice", torch::nn::Linear(kWidth, kWidth));
    branch = register_module("branch", torch::nn::Linear(kWidth, kWidth));
    frozen = register_module("frozen", torch::nn::Linear(kWidth, kWidth));
    for (auto& param : frozen->parameters()) param.set_requires_grad(false);
    unused = register_module("unused", torch::nn::Linear(kWidth, 7));
    direct = register_parameter("direct", torch::randn({kWidth, kWidth}) * 0.1);
    head =
        register_parameter("head", ties_by_storage ? embedding->weight.detach()
                                                   : embedding->weight);
  }

  // The mean loss of [batch, length] tokens and targets.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& targets,
                     bool takes_branch) {
    auto x = embedding(tokens);
    for (const auto& block : *blocks) {
      x = checkpoint(
          [block](const at::Tensor& input) {
            return block->as<HardBlock>()->forward(input);
          },
          x);
    }
    x = twice(torch::tanh(twice(x)));
    if (takes_branch) x = x + branch(x);
    x = frozen(x) + torch::matmul(x, direct);
    const auto logits = torch::matmul(x, head.t());
    return torch::nll_loss(
        torch::log_softmax(logits.to(at::kFloat), -1).flatten(0, 1),
        targets.flatten());
  }

  torch::nn::Embedding embedding{nullptr};
  torch::nn::ModuleList blocks;
  torch::nn::Linear twice{nullptr};
  torch::nn::Linear branch{nullptr};
  torch::nn::Linear frozen{nullptr};
  torch::nn::Linear unused{nullptr};
  at::Tensor direct;
  at::Tensor head;
};
TORCH_MODULE(HardModel);

// The same tokens for every caller: row `row` of the batch of `step`.
inline at::Tensor hard_tokens(std::int64_t step, std::int64_t row,
                              std::int64_t length) {
  auto tokens = torch::empty({1, length}, at::kLong);
  auto* data = tokens.mutable_data_ptr<std::int64_t>();
  auto state = static_cast<std::uint64_t>(step * 7919 + row * 104729 + 1);
  for (std::int64_t i = 0; i < length; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    data[i] = static_cast<std::int64_t>((state >> 33) % kVocabulary);
  }
  return tokens;
}

}  // namespace nfold::testing
