// File: llama.h
//
// The Llama architecture: RMSNorm, rotary positions, grouped-query attention
// and SwiGLU. Parameters have the names and shapes of Hugging Face's
// LlamaForCausalLM.
#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include "nfold/tensor_parallel.h"
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

// Cosines and sines of the rotation of positions [begin, begin + length),
// [length, head_dim]. The second half of the columns repeats the first.
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;

  static RotaryTable of(std::int64_t begin, std::int64_t length,
                        const ModelConfig& config,
                        const at::TensorOptions& options);
  // x [batch, heads, length, head_dim]. Rotates element i with element
  // i + head_dim / 2.
  at::Tensor rotate(const at::Tensor& x) const;
};

class LlamaAttentionImpl : public torch::nn::Module {
 public:
  LlamaAttentionImpl(const ModelConfig& config, const ModelGroups& groups);
  at::Tensor forward(const at::Tensor& x, const RotaryTable& rotary);

 private:
  const ModelConfig config_;
  const ModelGroups groups_;
  ColumnParallelLinear q_proj_{nullptr};
  ColumnParallelLinear k_proj_{nullptr};
  ColumnParallelLinear v_proj_{nullptr};
  RowParallelLinear o_proj_{nullptr};
};
TORCH_MODULE(LlamaAttention);

class LlamaMlpImpl : public torch::nn::Module {
 public:
  LlamaMlpImpl(const ModelConfig& config, const ModelGroups& groups);
  at::Tensor forward(const at::Tensor& x);

 private:
  Group* tensor_group_;
  ColumnParallelLinear gate_proj_{nullptr};
  ColumnParallelLinear up_proj_{nullptr};
  RowParallelLinear down_proj_{nullptr};
};
TORCH_MODULE(LlamaMlp);

class LlamaBlockImpl : public torch::nn::Module {
 public:
  LlamaBlockImpl(const ModelConfig& config, const ModelGroups& groups);
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
  Llama(const ModelConfig& config, const ModelGroups& groups);

  at::Tensor hidden_states(const at::Tensor& tokens) override;

 private:
  const at::Tensor& head_weight() const override;

  const ModelConfig config_;
  VocabParallelEmbedding embed_tokens_{nullptr};
  torch::nn::ModuleList layers_;
  RmsNorm norm_{nullptr};
  ColumnParallelLinear lm_head_{nullptr};  // empty if tied to embed_tokens
};

}  // namespace nfold::train
