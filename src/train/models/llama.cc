#include "train/models/llama.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "nfold/activation_checkpoint.h"
#include "nfold/differentiable_collectives.h"
#include "nfold/sequence_parallel.h"

namespace nfold::train {
namespace {

ParallelLinearOptions projection(std::int64_t in, std::int64_t out,
                                 double deviation) {
  ParallelLinearOptions options;
  options.in = in;
  options.out = out;
  options.has_bias = false;
  // q, k and v, or gate and up, have one input.
  options.copies_input = false;
  options.initialize = [deviation](at::Tensor weight, const at::Tensor&) {
    weight.normal_(0, deviation);
  };
  return options;
}

}  // namespace

RmsNormImpl::RmsNormImpl(std::int64_t size, double eps)
    : eps_(eps), weight_(register_parameter("weight", at::ones({size}))) {}

at::Tensor RmsNormImpl::forward(const at::Tensor& x) {
  return at::rms_norm(x, {weight_.size(0)}, weight_, eps_);
}

RotaryTable RotaryTable::of(std::int64_t begin, std::int64_t length,
                            const ModelConfig& config,
                            const at::TensorOptions& options) {
  // In fp32 whatever the model's dtype: bf16 has no room for large positions.
  const auto wide = options.dtype(at::kFloat).requires_grad(false);
  const auto exponent = at::arange(0, config.head_dim, 2, wide) /
                        static_cast<double>(config.head_dim);
  const auto frequency = at::pow(config.rope_theta, exponent).reciprocal();
  const auto half =
      at::outer(at::arange(begin, begin + length, wide), frequency);
  const auto angle = at::cat({half, half}, 1);
  return {angle.cos().to(options.dtype()), angle.sin().to(options.dtype())};
}

at::Tensor RotaryTable::rotate(const at::Tensor& x) const {
  const auto halves = x.chunk(2, -1);
  return x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
}

LlamaAttentionImpl::LlamaAttentionImpl(const ModelConfig& config,
                                       const ModelGroups& groups)
    : config_(config), groups_(groups) {
  heads_per_rank(groups, "attention heads (num_attention_heads)",
                 config.num_heads);
  heads_per_rank(groups, "heads of keys and values (num_key_value_heads)",
                 config.num_kv_heads);
  const std::int64_t width = config.hidden_size;
  const auto add = [&](const char* name, std::int64_t num_heads) {
    return register_module(
        name,
        ColumnParallelLinear(projection(width, num_heads * config.head_dim,
                                        config.initializer_range),
                             groups.tensor));
  };
  q_proj_ = add("q_proj", config.num_heads);
  k_proj_ = add("k_proj", config.num_kv_heads);
  v_proj_ = add("v_proj", config.num_kv_heads);
  o_proj_ = register_module(
      "o_proj",
      RowParallelLinear(projection(config.num_heads * config.head_dim, width,
                                   config.residual_deviation()),
                        groups.tensor));
}

at::Tensor LlamaAttentionImpl::forward(const at::Tensor& x,
                                       const RotaryTable& rotary) {
  const auto input = copy_to_group(groups_.tensor, x);
  auto heads = [&](ColumnParallelLinear& linear) {
    return linear->forward(input)
        .unflatten(-1, {-1, config_.head_dim})
        .transpose(1, 2);
  };
  const auto q = rotary.rotate(heads(q_proj_));
  const auto k = rotary.rotate(heads(k_proj_));
  const double dropout = is_training() ? config_.attention_dropout : 0.0;
  const bool is_grouped = config_.num_kv_heads != config_.num_heads;
  const auto y = sequence_parallel_attention(
      groups_.sequence, q, k, heads(v_proj_),
      [=](const at::Tensor& query, const at::Tensor& key,
          const at::Tensor& value) {
        return at::scaled_dot_product_attention(
            query, key, value, {}, dropout, /*is_causal=*/true,
            /*scale=*/std::nullopt, /*enable_gqa=*/is_grouped);
      });
  return o_proj_->forward(y.transpose(1, 2).flatten(2));
}

LlamaMlpImpl::LlamaMlpImpl(const ModelConfig& config, const ModelGroups& groups)
    : tensor_group_(groups.tensor) {
  const std::int64_t width = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const auto options = projection(width, inner, config.initializer_range);
  gate_proj_ = register_module("gate_proj",
                               ColumnParallelLinear(options, groups.tensor));
  up_proj_ =
      register_module("up_proj", ColumnParallelLinear(options, groups.tensor));
  down_proj_ = register_module(
      "down_proj",
      RowParallelLinear(projection(inner, width, config.residual_deviation()),
                        groups.tensor));
}

at::Tensor LlamaMlpImpl::forward(const at::Tensor& x) {
  const auto input = copy_to_group(tensor_group_, x);
  return down_proj_->forward(at::silu(gate_proj_->forward(input)) *
                             up_proj_->forward(input));
}

LlamaBlockImpl::LlamaBlockImpl(const ModelConfig& config,
                               const ModelGroups& groups)
    : input_layernorm_(register_module(
          "input_layernorm", RmsNorm(config.hidden_size, config.norm_eps))),
      self_attn_(register_module("self_attn", LlamaAttention(config, groups))),
      post_attention_layernorm_(
          register_module("post_attention_layernorm",
                          RmsNorm(config.hidden_size, config.norm_eps))),
      mlp_(register_module("mlp", LlamaMlp(config, groups))) {}

at::Tensor LlamaBlockImpl::forward(const at::Tensor& x,
                                   const RotaryTable& rotary) {
  const auto y = x + self_attn_->forward(input_layernorm_->forward(x), rotary);
  return y + mlp_->forward(post_attention_layernorm_->forward(y));
}

Llama::Llama(const ModelConfig& config, const ModelGroups& groups)
    : CausalLm(config, groups), config_(config) {
  auto model =
      register_module("model", std::make_shared<torch::nn::Module>("Model"));
  embed_tokens_ =
      model->register_module("embed_tokens", make_embedding(config, groups));
  layers_ = model->register_module("layers", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    layers_->push_back(LlamaBlock(config, groups));
  }
  norm_ = model->register_module("norm",
                                 RmsNorm(config.hidden_size, config.norm_eps));
  if (config.tie_word_embeddings) return;
  lm_head_ = register_module("lm_head", make_head(config, groups));
}

const at::Tensor& Llama::head_weight() const {
  return lm_head_ ? lm_head_->weight() : embed_tokens_->weight();
}

at::Tensor Llama::hidden_states(const at::Tensor& tokens) {
  check_tokens(groups(), tokens, config_.max_positions);
  auto x = embed_tokens_->forward(tokens);
  const auto rotary =
      RotaryTable::of(sequence_offset(groups().sequence, tokens.size(1)),
                      tokens.size(1), config_, x.options());
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

}  // namespace nfold::train
