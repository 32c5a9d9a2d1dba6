// File: gpt.h
//
// The GPT-2 architecture: learned positions, pre-norm blocks, GELU by its
// tanh approximation.
//
// Parameters have the names and the shapes of Hugging Face's GPT2LMHeadModel,
// so that saved weights load there without conversion. That is also why the
// projections keep their weight as [in, out] and are not torch::nn::Linear.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include "train/models/causal_lm.h"

namespace nfold::train {

// y = x weight + bias, weight [in, out].
class ProjectionImpl : public torch::nn::Module {
 public:
  ProjectionImpl(std::int64_t in, std::int64_t out, double deviation);
  at::Tensor forward(const at::Tensor& x);

 private:
  at::Tensor weight_;
  at::Tensor bias_;
};
TORCH_MODULE(Projection);

class GptAttentionImpl : public torch::nn::Module {
 public:
  explicit GptAttentionImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  const std::int64_t num_heads_;
  const double attention_dropout_;
  Projection c_attn_{nullptr};
  Projection c_proj_{nullptr};
};
TORCH_MODULE(GptAttention);

class GptMlpImpl : public torch::nn::Module {
 public:
  explicit GptMlpImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  Projection c_fc_{nullptr};
  Projection c_proj_{nullptr};
};
TORCH_MODULE(GptMlp);

class GptBlockImpl : public torch::nn::Module {
 public:
  explicit GptBlockImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  const double residual_dropout_;
  torch::nn::LayerNorm ln_1_{nullptr};
  GptAttention attn_{nullptr};
  torch::nn::LayerNorm ln_2_{nullptr};
  GptMlp mlp_{nullptr};
};
TORCH_MODULE(GptBlock);

class Gpt : public CausalLm {
 public:
  explicit Gpt(const ModelConfig& config);

  at::Tensor hidden_states(const at::Tensor& tokens) override;
  at::Tensor project(const at::Tensor& hidden) override;

 private:
  const ModelConfig config_;
  torch::nn::Embedding wte_{nullptr};
  torch::nn::Embedding wpe_{nullptr};
  torch::nn::ModuleList h_;
  torch::nn::LayerNorm ln_f_{nullptr};
  at::Tensor head_;  // [vocab_size, hidden_size]; wte's if tied
};

}  // namespace nfold::train
