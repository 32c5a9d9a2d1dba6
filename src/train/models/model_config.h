// File: model_config.h
//
// The `model` section of a trainer configuration as plain data. The keys are
// those of Hugging Face's config.json, so such a file can be pasted; what is
// not needed here (architectures, token ids, ...) is skipped.
//
//   ModelConfig config = ModelConfig::read(document.root().object("model"));
//   document.raise_if_violated();
//
// Thread-safe (plain data).
#pragma once

#include <cstdint>
#include <string>

#include "nfold/strict_json.h"

namespace nfold::train {

struct ModelConfig {
  std::string model_type = "gpt2";  // or "llama"
  // 0 where the file leaves it to the tokenizer.
  std::int64_t vocab_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t max_positions = 0;
  bool tie_word_embeddings = true;
  // All 0 unless given, unlike Hugging Face's 0.1.
  double embedding_dropout = 0;
  double residual_dropout = 0;
  double attention_dropout = 0;
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  double initializer_range = 0.02;
  // Projections that write into the residual stream start with this standard
  // deviation, so that its variance does not grow with the depth (GPT-2).
  double residual_deviation() const;
  // Mixtures of experts in place of the MLP in every decoder_sparse_step-th
  // block of a GPT; none if num_experts is 0. See nfold/moe.h.
  std::int64_t num_experts = 0;
  std::int64_t experts_per_token = 2;
  std::int64_t decoder_sparse_step = 2;
  double expert_capacity_factor = 1.25;
  double router_aux_loss_coefficient = 0.01;
  double router_jitter = 0;
  // Run every block under nfold::checkpoint.
  bool activation_checkpointing = false;

  bool is_llama() const { return model_type == "llama"; }

  // Adds every unknown key and bad value to the violations of the section's
  // document. Keys with defaults are filled in.
  static ModelConfig read(JsonObject section);
  // JSON that read() and Hugging Face's libraries understand.
  std::string to_json_text() const;
};

}  // namespace nfold::train
