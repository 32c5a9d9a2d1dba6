#include "train/models/model_config.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

namespace nfold::train {
namespace {

constexpr JsonRange kPositive{.least = 1};
constexpr JsonRange kProbability{.least = 0, .most = 1, .most_is_open = true};

// Keys of Hugging Face's files that change nothing in training.
constexpr std::string_view kSkippedKeys[] = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "n_ctx",
    "pad_token_id",
    "pretraining_tp",
    "scale_attn_weights",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
};

void expect_text(JsonObject& section, std::string_view key,
                 std::string_view expected) {
  std::string found;
  if (section.read(key, found) && found != expected) {
    section.unsupported(
        key, fmt::format("found \"{}\", but only \"{}\" is implemented.", found,
                         expected));
  }
}

void expect_absent(JsonObject& section, std::string_view key,
                   std::string_view neutral) {
  const auto found = section.raw(key);
  if (found.has_value() && *found != "null" && *found != neutral) {
    section.unsupported(
        key,
        fmt::format("found {}, but only {} is implemented.", *found, neutral));
  }
}

void require_positive(JsonObject& section, std::string_view key,
                      std::int64_t& value) {
  section.require(key);
  section.read(key, value, kPositive);
}

void read_mixture(JsonObject& section, ModelConfig& config) {
  section.read("num_local_experts", config.num_experts, {.least = 0});
  section.read("num_experts_per_tok", config.experts_per_token,
               {.least = 1, .most = 2});
  section.read("decoder_sparse_step", config.decoder_sparse_step, kPositive);
  section.read("expert_capacity_factor", config.expert_capacity_factor,
               {.least = 0, .least_is_open = true});
  section.read("router_aux_loss_coef", config.router_aux_loss_coefficient,
               {.least = 0});
  section.read("router_jitter_noise", config.router_jitter, kProbability);
  if (config.num_experts == 0) return;
  if (config.num_experts < config.experts_per_token) {
    section.violation(
        "num_local_experts",
        fmt::format("found {}; expected at least num_experts_per_tok, which "
                    "is {}.",
                    config.num_experts, config.experts_per_token));
  }
  if (config.decoder_sparse_step > config.num_layers) {
    section.violation(
        "decoder_sparse_step",
        fmt::format("found {}, so that none of the {} blocks has a mixture; "
                    "leave num_local_experts out, or lower it.",
                    config.decoder_sparse_step, config.num_layers));
  }
}

void read_gpt(JsonObject& section, ModelConfig& config) {
  config.max_positions = 1024;
  require_positive(section, "n_layer", config.num_layers);
  require_positive(section, "n_embd", config.hidden_size);
  require_positive(section, "n_head", config.num_heads);
  section.read("n_positions", config.max_positions, kPositive);
  std::optional<std::int64_t> inner;
  section.read("n_inner", inner, kPositive);
  config.intermediate_size = inner.value_or(4 * config.hidden_size);
  section.read("embd_pdrop", config.embedding_dropout, kProbability);
  section.read("resid_pdrop", config.residual_dropout, kProbability);
  section.read("attn_pdrop", config.attention_dropout, kProbability);
  section.read("layer_norm_epsilon", config.norm_eps,
               {.least = 0, .least_is_open = true});
  expect_text(section, "activation_function", "gelu_new");
  read_mixture(section, config);
  config.num_kv_heads = config.num_heads;
  if (config.num_heads > 0) {
    config.head_dim = config.hidden_size / config.num_heads;
    if (config.hidden_size % config.num_heads != 0) {
      section.violation("n_embd",
                        fmt::format("found {}; expected a multiple of n_head, "
                                    "which is {}.",
                                    config.hidden_size, config.num_heads));
    }
  }
}

void read_llama(JsonObject& section, ModelConfig& config) {
  config.max_positions = 2048;
  config.norm_eps = 1e-6;
  config.tie_word_embeddings = false;
  require_positive(section, "num_hidden_layers", config.num_layers);
  require_positive(section, "hidden_size", config.hidden_size);
  require_positive(section, "num_attention_heads", config.num_heads);
  section.read("max_position_embeddings", config.max_positions, kPositive);
  config.num_kv_heads = config.num_heads;
  section.read("num_key_value_heads", config.num_kv_heads, kPositive);
  // 8/3 of the width makes SwiGLU's three matrices as large as the two of a
  // plain MLP; rounded up to whole cache lines.
  config.intermediate_size = (config.hidden_size * 8 / 3 + 63) / 64 * 64;
  section.read("intermediate_size", config.intermediate_size, kPositive);
  section.read("attention_dropout", config.attention_dropout, kProbability);
  section.read("rms_norm_eps", config.norm_eps,
               {.least = 0, .least_is_open = true});
  section.read("rope_theta", config.rope_theta,
               {.least = 0, .least_is_open = true});
  expect_text(section, "hidden_act", "silu");
  expect_absent(section, "attention_bias", "false");
  expect_absent(section, "mlp_bias", "false");
  expect_absent(section, "rope_scaling", "null");
  std::optional<std::int64_t> head_dim;
  section.read("head_dim", head_dim, kPositive);
  if (config.num_heads > 0) {
    config.head_dim = head_dim.value_or(config.hidden_size / config.num_heads);
    if (!head_dim && config.hidden_size % config.num_heads != 0) {
      section.violation(
          "hidden_size",
          fmt::format("found {}; expected a multiple of num_attention_heads, "
                      "which is {}, unless head_dim is given.",
                      config.hidden_size, config.num_heads));
    } else if (config.head_dim % 2 != 0) {
      section.violation("head_dim",
                        fmt::format("found {}; rotary positions need an even "
                                    "number.",
                                    config.head_dim));
    }
    if (config.num_heads % config.num_kv_heads != 0) {
      section.violation(
          "num_key_value_heads",
          fmt::format("found {}; expected a divisor of num_attention_heads, "
                      "which is {}.",
                      config.num_kv_heads, config.num_heads));
    }
  }
}

}  // namespace

ModelConfig ModelConfig::read(JsonObject section) {
  constexpr std::string_view kTypes[] = {"gpt2", "llama"};
  ModelConfig config;
  if (const auto type = section.read_choice("model_type", kTypes)) {
    config.model_type = kTypes[*type];
  }
  section.read("vocab_size", config.vocab_size, kPositive);
  section.read("initializer_range", config.initializer_range,
               {.least = 0, .least_is_open = true});
  section.read("activation_checkpointing", config.activation_checkpointing);
  if (config.is_llama()) {
    read_llama(section, config);
  } else {
    read_gpt(section, config);
  }
  section.read("tie_word_embeddings", config.tie_word_embeddings);
  for (const std::string_view key : kSkippedKeys) section.raw(key);
  section.finish();
  return config;
}

double ModelConfig::residual_deviation() const {
  return initializer_range / std::sqrt(2.0 * static_cast<double>(num_layers));
}

std::string ModelConfig::to_json_text() const {
  nlohmann::ordered_json json;
  json["model_type"] = model_type;
  json["vocab_size"] = vocab_size;
  json["tie_word_embeddings"] = tie_word_embeddings;
  json["initializer_range"] = initializer_range;
  json["activation_checkpointing"] = activation_checkpointing;
  if (is_llama()) {
    json["architectures"] = {"LlamaForCausalLM"};
    json["num_hidden_layers"] = num_layers;
    json["hidden_size"] = hidden_size;
    json["num_attention_heads"] = num_heads;
    json["num_key_value_heads"] = num_kv_heads;
    json["head_dim"] = head_dim;
    json["intermediate_size"] = intermediate_size;
    json["max_position_embeddings"] = max_positions;
    json["attention_dropout"] = attention_dropout;
    json["rms_norm_eps"] = norm_eps;
    json["rope_theta"] = rope_theta;
    json["hidden_act"] = "silu";
  } else {
    // Hugging Face's GPT-2 has no mixtures and could not read the weights.
    if (num_experts == 0) json["architectures"] = {"GPT2LMHeadModel"};
    json["n_layer"] = num_layers;
    json["n_embd"] = hidden_size;
    json["n_head"] = num_heads;
    json["n_positions"] = max_positions;
    json["n_inner"] = intermediate_size;
    json["embd_pdrop"] = embedding_dropout;
    json["resid_pdrop"] = residual_dropout;
    json["attn_pdrop"] = attention_dropout;
    json["layer_norm_epsilon"] = norm_eps;
    json["activation_function"] = "gelu_new";
    if (num_experts > 0) {
      json["num_local_experts"] = num_experts;
      json["num_experts_per_tok"] = experts_per_token;
      json["decoder_sparse_step"] = decoder_sparse_step;
      json["expert_capacity_factor"] = expert_capacity_factor;
      json["router_aux_loss_coef"] = router_aux_loss_coefficient;
      json["router_jitter_noise"] = router_jitter;
    }
  }
  return json.dump(2);
}

}  // namespace nfold::train
