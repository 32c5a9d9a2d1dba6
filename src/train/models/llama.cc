#include "train/models/llama.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "nfold/activation_checkpoint.h"

namespace nfold::train {
namespace {

torch::nn::Linear linear(std::int64_t in, std::int64_t out, double deviation) {
  torch::nn::Linear result(torch::nn::LinearOptions(in, out).bias(false));
  at::NoGradGuard no_grad;
  result->weight.normal_(0, deviation);
  return result;
}

}  // namespace

RmsNormImpl::RmsNormImpl(std::int64_t size, double eps)
    : eps_(eps), weight_(register_parameter("weight", at::ones({size}))) {}

at::Tensor RmsNormImpl::forward(const at::Tensor& x) {
  return at::rms_norm(x, {weight_.size(0)}, weight_, eps_);
}

RotaryTable RotaryTable::of(std::int64_t length, const ModelConfig& config,
                            const at::TensorOptions& options) {
  // In fp32 whatever the model's dtype: bf16 has no room for large positions.
  const auto wide = options.dtype(at::kFloat).requires_grad(false);
  const auto exponent = at::arange(0, config.head_dim, 2, wide) /
                        static_cast<double>(config.head_dim);
  const auto frequency = at::pow(config.rope_theta, exponent).reciprocal();
  const auto half = at::outer(at::arange(length, wide), frequency);
  const auto angle = at::cat({half, half}, 1);
  return {angle.cos().to(options.dtype()), angle.sin().to(options.dtype())};
}

at::Tensor RotaryTable::rotate(const at::Tensor& x) const {
  const auto halves = x.chunk(2, -1);
  return x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
}

LlamaAttentionImpl::LlamaAttentionImpl(const ModelConfig& config)
    : config_(config) {
  const std::int64_t width = config.hidden_size;
  const std::int64_t kv_width = config.num_kv_heads * config.head_dim;
  const std::int64_t q_width = config.num_heads * config.head_dim;
  const double deviation = config.initializer_range;
  q_proj_ = register_module("q_proj", linear(width, q_width, deviation));
  k_proj_ = register_module("k_proj", linear(width, kv_width, deviation));
  v_proj_ = register_module("v_proj", linear(width, kv_width, deviation));
  o_proj_ = register_module(
      "o_proj", linear(q_width, width, config.residual_deviation()));
}

at::Tensor LlamaAttentionImpl::forward(const at::Tensor& x,
                                       const RotaryTable& rotary) {
  auto heads = [&](torch::nn::Linear& projection) {
    return projection->forward(x)
        .unflatten(-1, {-1, config_.head_dim})
        .transpose(1, 2);
  };
  const auto q = rotary.rotate(heads(q_proj_));
  const auto k = rotary.rotate(heads(k_proj_));
  const auto y = at::scaled_dot_product_attention(
      q, k, heads(v_proj_), {}, is_training() ? config_.attention_dropout : 0.0,
      /*is_causal=*/true,
      /*scale=*/std::nullopt,
      /*enable_gqa=*/config_.num_kv_heads != config_.num_heads);
  return o_proj_->forward(y.transpose(1, 2).flatten(2));
}

LlamaMlpImpl::LlamaMlpImpl(const ModelConfig& config) {
  const std::int64_t width = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  gate_proj_ = register_module("gate_proj",
                               linear(width, inner, config.initializer_range));
  up_proj_ = register_module("up_proj",
                             linear(width, inner, config.initializer_range));
  down_proj_ = register_module(
      "down_proj", linear(inner, width, config.residual_deviation()));
}

at::Tensor LlamaMlpImpl::forward(const at::Tensor& x) {
  return down_proj_->forward(at::silu(gate_proj_->forward(x)) *
                             up_proj_->forward(x));
}

LlamaBlockImpl::LlamaBlockImpl(const ModelConfig& config)
    : input_layernorm_(register_module(
          "input_layernorm", RmsNorm(config.hidden_size, config.norm_eps))),
      self_attn_(register_module("self_attn", LlamaAttention(config))),
      post_attention_layernorm_(
          register_module("post_attention_layernorm",
                          RmsNorm(config.hidden_size, config.norm_eps))),
      mlp_(register_module("mlp", LlamaMlp(config))) {}

at::Tensor LlamaBlockImpl::forward(const at::Tensor& x,
                                   const RotaryTable& rotary) {
  const auto y = x + self_attn_->forward(input_layernorm_->forward(x), rotary);
  return y + mlp_->forward(post_attention_layernorm_->forward(y));
}

Llama::Llama(const ModelConfig& config) : config_(config) {
  auto model =
      register_module("model", std::make_shared<torch::nn::Module>("Model"));
  embed_tokens_ = model->register_module(
      "embed_tokens",
      torch::nn::Embedding(config.vocab_size, config.hidden_size));
  {
    at::NoGradGuard no_grad;
    embed_tokens_->weight.normal_(0, config.initializer_range);
  }
  layers_ = model->register_module("layers", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    layers_->push_back(LlamaBlock(config));
  }
  norm_ = model->register_module("norm",
                                 RmsNorm(config.hidden_size, config.norm_eps));
  if (config.tie_word_embeddings) {
    head_ = embed_tokens_->weight;
    return;
  }
  auto head =
      register_module("lm_head", std::make_shared<torch::nn::Module>("LmHead"));
  head_ = head->register_parameter(
      "weight", at::empty({config.vocab_size, config.hidden_size})
                    .normal_(0, config.initializer_range));
}

at::Tensor Llama::hidden_states(const at::Tensor& tokens) {
  check_tokens(tokens, config_.max_positions);
  auto x = embed_tokens_->forward(tokens);
  const auto rotary = RotaryTable::of(tokens.size(1), config_, x.options());
  for (const auto& module : *layers_) {
    auto* block = module->as<LlamaBlockImpl>();
    if (config_.activation_checkpointing) {
      x = checkpoint(
          [block, rotary](const at::Tensor& y) {
            return block->forward(y, rotary);
          },
          x);
    } else {
      x = block->forward(x, rotary);
    }
  }
  return norm_->forward(x);
}

at::Tensor Llama::project(const at::Tensor& hidden) {
  return at::linear(hidden, head_);
}

}  // namespace nfold::train
