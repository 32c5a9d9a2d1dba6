// File: gpt.h
//
// The GPT-2 architecture: learned positions, pre-norm blocks, GELU by its
// tanh approximation.
//
// Parameters have the names and the shapes of Hugging Face's GPT2LMHeadModel,
// so that saved weights load there without conversion. That is also why the
// projections keep their weight as [in, out].
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include "nfold/moe.h"
#include "nfold/tensor_parallel.h"
#include "train/models/causal_lm.h"

namespace nfold::train {

class GptAttentionImpl : public torch::nn::Module {
 public:
  GptAttentionImpl(const ModelConfig& config, const ModelGroups& groups);
  at::Tensor forward(const at::Tensor& x);

 private:
  Group* sequence_group_;
  const std::int64_t num_heads_;  // of this rank
  const double attention_dropout_;
  ColumnParallelLinear c_attn_{nullptr};
  RowParallelLinear c_proj_{nullptr};
};
TORCH_MODULE(GptAttention);

class GptMlpImpl : public torch::nn::Module {
 public:
  GptMlpImpl(const ModelConfig& config, const ModelGroups& groups);
  at::Tensor forward(const at::Tensor& x);

 private:
  ColumnParallelLinear c_fc_{nullptr};
  RowParallelLinear c_proj_{nullptr};
};
TORCH_MODULE(GptMlp);

class GptBlockImpl : public torch::nn::Module {
 public:
  // `index` counts the blocks from 0.
  GptBlockImpl(const ModelConfig& config, const ModelGroups& groups,
               std::int64_t index);
  // The output alone, or what run_mixture of gpt_mixture.h returns.
  std::vector<at::Tensor> forward(const at::Tensor& x);

 private:
  const double residual_dropout_;
  torch::nn::LayerNorm ln_1_{nullptr};
  GptAttention attn_{nullptr};
  torch::nn::LayerNorm ln_2_{nullptr};
  GptMlp mlp_{nullptr};  // or
  MixtureOfExperts mixture_{nullptr};
};
TORCH_MODULE(GptBlock);

class Gpt : public CausalLm {
 public:
  Gpt(const ModelConfig& config, const ModelGroups& groups);

  at::Tensor hidden_states(const at::Tensor& tokens) override;

 private:
  const at::Tensor& head_weight() const override;

  const ModelConfig config_;
  VocabParallelEmbedding wte_{nullptr};
  torch::nn::Embedding wpe_{nullptr};
  torch::nn::ModuleList h_;
  torch::nn::LayerNorm ln_f_{nullptr};
  ColumnParallelLinear lm_head_{nullptr};  // empty if tied to wte
};

}  // namespace nfold::train
