#include "train/models/gpt.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "nfold/activation_checkpoint.h"
#include "nfold/sequence_parallel.h"
#include "train/models/gpt_mixture.h"

namespace nfold::train {
namespace {

torch::nn::LayerNorm layer_norm(const ModelConfig& config) {
  return torch::nn::LayerNorm(
      torch::nn::LayerNormOptions({config.hidden_size}).eps(config.norm_eps));
}

ParallelLinearOptions transposed_projection(std::int64_t in, std::int64_t out,
                                            double deviation) {
  ParallelLinearOptions options;
  options.in = in;
  options.out = out;
  options.is_transposed = true;
  options.initialize = [deviation](at::Tensor weight, at::Tensor bias) {
    weight.normal_(0, deviation);
    bias.zero_();
  };
  return options;
}

}  // namespace

GptAttentionImpl::GptAttentionImpl(const ModelConfig& config,
                                   const ModelGroups& groups)
    : sequence_group_(groups.sequence),
      num_heads_(
          heads_per_rank(groups, "attention heads (n_head)", config.num_heads)),
      attention_dropout_(config.attention_dropout) {
  const std::int64_t width = config.hidden_size;
  auto qkv = transposed_projection(width, 3 * width, config.initializer_range);
  qkv.num_blocks = 3;
  c_attn_ = register_module("c_attn", ColumnParallelLinear(qkv, groups.tensor));
  c_proj_ = register_module(
      "c_proj",
      RowParallelLinear(
          transposed_projection(width, width, config.residual_deviation()),
          groups.tensor));
}

at::Tensor GptAttentionImpl::forward(const at::Tensor& x) {
  // [batch, length, 3, heads, head_dim] -> three of [batch, heads, length,
  // head_dim], all views of one product.
  const auto qkv = c_attn_->forward(x)
                       .unflatten(-1, {3, num_heads_, -1})
                       .permute({2, 0, 3, 1, 4})
                       .unbind(0);
  const double dropout = is_training() ? attention_dropout_ : 0.0;
  const auto y = sequence_parallel_attention(
      sequence_group_, qkv[0], qkv[1], qkv[2],
      [dropout](const at::Tensor& query, const at::Tensor& key,
                const at::Tensor& value) {
        return at::scaled_dot_product_attention(query, key, value, {}, dropout,
                                                /*is_causal=*/true);
      });
  return c_proj_->forward(y.transpose(1, 2).flatten(2));
}

GptMlpImpl::GptMlpImpl(const ModelConfig& config, const ModelGroups& groups)
    : c_fc_(register_module(
          "c_fc",
          ColumnParallelLinear(transposed_projection(config.hidden_size,
                                                     config.intermediate_size,
                                                     config.initializer_range),
                               groups.tensor))),
      c_proj_(register_module(
          "c_proj",
          RowParallelLinear(transposed_projection(config.intermediate_size,
                                                  config.hidden_size,
                                                  config.residual_deviation()),
                            groups.tensor))) {}

at::Tensor GptMlpImpl::forward(const at::Tensor& x) {
  return c_proj_->forward(at::gelu(c_fc_->forward(x), "tanh"));
}

GptBlockImpl::GptBlockImpl(const ModelConfig& config, const ModelGroups& groups,
                           std::int64_t index)
    : residual_dropout_(config.residual_dropout),
      ln_1_(register_module("ln_1", layer_norm(config))),
      attn_(register_module("attn", GptAttention(config, groups))),
      ln_2_(register_module("ln_2", layer_norm(config))) {
  if (has_mixture(config, index)) {
    mixture_ = register_module("mlp", gpt_mixture(config, groups));
  } else {
    mlp_ = register_module("mlp", GptMlp(config, groups));
  }
}

std::vector<at::Tensor> GptBlockImpl::forward(const at::Tensor& x) {
  const auto y = x + at::dropout(attn_->forward(ln_1_->forward(x)),
                                 residual_dropout_, is_training());
  const auto normed = ln_2_->forward(y);
  auto made = mixture_ ? run_mixture(mixture_, normed)
                       : std::vector{mlp_->forward(normed)};
  made[0] = y + at::dropout(made[0], residual_dropout_, is_training());
  return made;
}

Gpt::Gpt(const ModelConfig& config, const ModelGroups& groups)
    : CausalLm(config, groups), config_(config) {
  auto transformer = register_module(
      "transformer", std::make_shared<torch::nn::Module>("Transformer"));
  wte_ = transformer->register_module("wte", make_embedding(config, groups));
  wpe_ = transformer->register_module(
      "wpe", torch::nn::Embedding(config.max_positions, config.hidden_size));
  {
    at::NoGradGuard no_grad;
    wpe_->weight.normal_(0, config.initializer_range);
  }
  h_ = transformer->register_module("h", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    h_->push_back(GptBlock(config, groups, i));
  }
  ln_f_ = transformer->register_module("ln_f", layer_norm(config));
  if (config.tie_word_embeddings) return;
  lm_head_ = register_module("lm_head", make_head(config, groups));
}

const at::Tensor& Gpt::head_weight() const {
  return lm_head_ ? lm_head_->weight() : wte_->weight();
}

at::Tensor Gpt::hidden_states(const at::Tensor& tokens) {
  check_tokens(groups(), tokens, config_.max_positions);
  mixtures_ = {};
  const std::int64_t begin = sequence_offset(groups().sequence, tokens.size(1));
  const auto positions =
      at::arange(begin, begin + tokens.size(1), tokens.options());
  auto x = at::dropout(wte_->forward(tokens) + wpe_->forward(positions),
                       config_.embedding_dropout, is_training());
  for (const auto& module : *h_) {
    auto* block = module->as<GptBlockImpl>();
    const auto run = [block](const std::vector<at::Tensor>& inputs) {
      return block->forward(inputs[0]);
    };
    const auto made =
        config_.activation_checkpointing ? checkpoint(run, {x}) : run({x});
    x = made[0];
    add_to(mixtures_, made, tokens.numel() * config_.experts_per_token);
  }
  return ln_f_->forward(x);
}

}  // namespace nfold::train
