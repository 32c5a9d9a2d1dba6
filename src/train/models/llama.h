// File: llama.h
//
// The Llama architecture: RMSNorm, rotary positions, grouped-query attention
// and SwiGLU. Parameters have the names and shapes of Hugging Face's
// LlamaForCausalLM.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "train/models/causal_lm.h"

namespace nfold::train {

class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(std::int64_t size, double eps);
  at::Tensor forward(const at::Tensor& x);

 private:
  const double eps_;
  at::Tensor weight_;
};
TORCH_MODULE(RmsNorm);

// Cosines and sines of the rotation of each position, [length, head_dim]. The
// second half of the columns repeats the first.
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;

  static RotaryTable of(std::int64_t length, const ModelConfig& config,
                        const at::TensorOptions& options);
  // x [batch, heads, length, head_dim]. Rotates element i with element
  // i + head_dim / 2.
  at::Tensor rotate(const at::Tensor& x) const;
};

class LlamaAttentionImpl : public torch::nn::Module {
 public:
  explicit LlamaAttentionImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x, const RotaryTable& rotary);

 private:
  const ModelConfig config_;
  torch::nn::Linear q_proj_{nullptr};
  torch::nn::Linear k_proj_{nullptr};
  torch::nn::Linear v_proj_{nullptr};
  torch::nn::Linear o_proj_{nullptr};
};
TORCH_MODULE(LlamaAttention);

class LlamaMlpImpl : public torch::nn::Module {
 public:
  explicit LlamaMlpImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  torch::nn::Linear gate_proj_{nullptr};
  torch::nn::Linear up_proj_{nullptr};
  torch::nn::Linear down_proj_{nullptr};
};
TORCH_MODULE(LlamaMlp);

class LlamaBlockImpl : public torch::nn::Module {
 public:
  explicit LlamaBlockImpl(const ModelConfig& config);
  at::Tensor forward(const at::Tensor& x, const RotaryTable& rotary);

 private:
  RmsNorm input_layernorm_{nullptr};
  LlamaAttention self_attn_{nullptr};
  RmsNorm post_attention_layernorm_{nullptr};
  LlamaMlp mlp_{nullptr};
};
TORCH_MODULE(LlamaBlock);

class Llama : public CausalLm {
 public:
  explicit Llama(const ModelConfig& config);

  at::Tensor hidden_states(const at::Tensor& tokens) override;
  at::Tensor project(const at::Tensor& hidden) override;

 private:
  const ModelConfig config_;
  torch::nn::Embedding embed_tokens_{nullptr};
  torch::nn::ModuleList layers_;
  RmsNorm norm_{nullptr};
  at::Tensor head_;  // [vocab_size, hidden_size]; the embedding's if tied
};

}  // namespace nfold::train
