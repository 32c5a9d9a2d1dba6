#include "train/models/gpt.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "nfold/activation_checkpoint.h"

namespace nfold::train {
namespace {

torch::nn::LayerNorm layer_norm(const ModelConfig& config) {
  return torch::nn::LayerNorm(
      torch::nn::LayerNormOptions({config.hidden_size}).eps(config.norm_eps));
}

torch::nn::Embedding embedding(std::int64_t rows, const ModelConfig& config) {
  torch::nn::Embedding result(rows, config.hidden_size);
  at::NoGradGuard no_grad;
  result->weight.normal_(0, config.initializer_range);
  return result;
}

}  // namespace

ProjectionImpl::ProjectionImpl(std::int64_t in, std::int64_t out,
                               double deviation)
    : weight_(register_parameter("weight",
                                 at::empty({in, out}).normal_(0, deviation))),
      bias_(register_parameter("bias", at::zeros({out}))) {}

at::Tensor ProjectionImpl::forward(const at::Tensor& x) {
  std::vector<std::int64_t> sizes = x.sizes().vec();
  sizes.back() = weight_.size(1);
  return at::addmm(bias_, x.reshape({-1, weight_.size(0)}), weight_)
      .view(sizes);
}

GptAttentionImpl::GptAttentionImpl(const ModelConfig& config)
    : num_heads_(config.num_heads),
      attention_dropout_(config.attention_dropout),
      c_attn_(register_module(
          "c_attn", Projection(config.hidden_size, 3 * config.hidden_size,
                               config.initializer_range))),
      c_proj_(register_module("c_proj",
                              Projection(config.hidden_size, config.hidden_size,
                                         config.residual_deviation()))) {}

at::Tensor GptAttentionImpl::forward(const at::Tensor& x) {
  // [batch, length, 3, heads, head_dim] -> three of [batch, heads, length,
  // head_dim], all views of one product.
  const auto qkv = c_attn_->forward(x)
                       .unflatten(-1, {3, num_heads_, -1})
                       .permute({2, 0, 3, 1, 4})
                       .unbind(0);
  const auto y = at::scaled_dot_product_attention(
      qkv[0], qkv[1], qkv[2], {}, is_training() ? attention_dropout_ : 0.0,
      /*is_causal=*/true);
  return c_proj_->forward(y.transpose(1, 2).flatten(2));
}

GptMlpImpl::GptMlpImpl(const ModelConfig& config)
    : c_fc_(register_module(
          "c_fc", Projection(config.hidden_size, config.intermediate_size,
                             config.initializer_range))),
      c_proj_(register_module(
          "c_proj", Projection(config.intermediate_size, config.hidden_size,
                               config.residual_deviation()))) {}

at::Tensor GptMlpImpl::forward(const at::Tensor& x) {
  return c_proj_->forward(at::gelu(c_fc_->forward(x), "tanh"));
}

GptBlockImpl::GptBlockImpl(const ModelConfig& config)
    : residual_dropout_(config.residual_dropout),
      ln_1_(register_module("ln_1", layer_norm(config))),
      attn_(register_module("attn", GptAttention(config))),
      ln_2_(register_module("ln_2", layer_norm(config))),
      mlp_(register_module("mlp", GptMlp(config))) {}

at::Tensor GptBlockImpl::forward(const at::Tensor& x) {
  const auto y = x + at::dropout(attn_->forward(ln_1_->forward(x)),
                                 residual_dropout_, is_training());
  return y + at::dropout(mlp_->forward(ln_2_->forward(y)), residual_dropout_,
                         is_training());
}

Gpt::Gpt(const ModelConfig& config) : config_(config) {
  auto transformer = register_module(
      "transformer", std::make_shared<torch::nn::Module>("Transformer"));
  wte_ =
      transformer->register_module("wte", embedding(config.vocab_size, config));
  wpe_ = transformer->register_module("wpe",
                                      embedding(config.max_positions, config));
  h_ = transformer->register_module("h", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    h_->push_back(GptBlock(config));
  }
  ln_f_ = transformer->register_module("ln_f", layer_norm(config));
  if (config.tie_word_embeddings) {
    head_ = wte_->weight;
    return;
  }
  auto head =
      register_module("lm_head", std::make_shared<torch::nn::Module>("LmHead"));
  head_ = head->register_parameter(
      "weight", at::empty({config.vocab_size, config.hidden_size})
                    .normal_(0, config.initializer_range));
}

at::Tensor Gpt::hidden_states(const at::Tensor& tokens) {
  check_tokens(tokens, config_.max_positions);
  const auto positions = at::arange(tokens.size(1), tokens.options());
  auto x = at::dropout(wte_->forward(tokens) + wpe_->forward(positions),
                       config_.embedding_dropout, is_training());
  for (const auto& module : *h_) {
    auto* block = module->as<GptBlockImpl>();
    if (config_.activation_checkpointing) {
      x = checkpoint([block](const at::Tensor& y) { return block->forward(y); },
                     x);
    } else {
      x = block->forward(x);
    }
  }
  return ln_f_->forward(x);
}

at::Tensor Gpt::project(const at::Tensor& hidden) {
  return at::linear(hidden, head_);
}

}  // namespace nfold::train
