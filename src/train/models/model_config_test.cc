#include "train/models/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

ModelConfig read(const std::string& text) {
  auto document = JsonDocument::from_text(text, "test");
  ModelConfig config = ModelConfig::read(document.root());
  document.raise_if_violated();
  return config;
}

std::string error_of(const std::string& text) {
  try {
    read(text);
  } catch (const std::exception& error) {
    return message_of(error);
  }
  return "no error";
}

TEST(ModelConfigTest, ReadsTheKeysOfGpt2) {
  const auto config = read(R"({"model_type": "gpt2", "n_layer": 2,
    "n_embd": 64, "n_head": 4, "n_positions": 128, "vocab_size": 1000,
    "resid_pdrop": 0.1, "architectures": ["GPT2LMHeadModel"],
    "n_inner": null, "activation_checkpointing": true})");
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.intermediate_size, 256);
  EXPECT_EQ(config.max_positions, 128);
  EXPECT_EQ(config.residual_dropout, 0.1);
  EXPECT_EQ(config.attention_dropout, 0);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_TRUE(config.activation_checkpointing);
}

TEST(ModelConfigTest, ReadsTheKeysOfLlama) {
  const auto config = read(R"({"model_type": "llama", "num_hidden_layers": 3,
    "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2,
    "rope_theta": 5e5, "rope_scaling": null, "attention_bias": false})");
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.intermediate_size, 256);
  EXPECT_EQ(config.rope_theta, 5e5);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.vocab_size, 0);
}

TEST(ModelConfigTest, ReadsMixturesOfExperts) {
  const auto config = read(R"({"n_layer": 2, "n_embd": 64, "n_head": 4,
    "num_local_experts": 4, "num_experts_per_tok": 1,
    "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.1,
    "decoder_sparse_step": 1, "expert_capacity_factor": 2})");
  EXPECT_EQ(config.num_experts, 4);
  EXPECT_EQ(config.experts_per_token, 1);
  EXPECT_EQ(config.router_aux_loss_coefficient, 0.02);
  EXPECT_EQ(config.router_jitter, 0.1);
  EXPECT_EQ(config.decoder_sparse_step, 1);
  EXPECT_EQ(config.expert_capacity_factor, 2);
  EXPECT_EQ(read(R"({"n_layer": 2, "n_embd": 64, "n_head": 4})").num_experts,
            0);
}

TEST(ModelConfigTest, MixturesThatCannotBeAreErrors) {
  const auto error = [](const std::string& keys) {
    return error_of(R"({"n_layer": 2, "n_embd": 64, "n_head": 4, )" + keys +
                    "}");
  };
  EXPECT_THAT(error(R"("num_local_experts": 4, "num_experts_per_tok": 3)"),
              HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(error(R"("num_local_experts": 1)"),
              AllOf(HasSubstr("num_local_experts"), HasSubstr("found 1"),
                    HasSubstr("which is 2")));
  EXPECT_THAT(error(R"("num_local_experts": 4, "expert_capacity_factor": 0)"),
              HasSubstr("expert_capacity_factor"));
  EXPECT_THAT(error(R"("num_local_experts": 4, "decoder_sparse_step": 3)"),
              AllOf(HasSubstr("decoder_sparse_step"), HasSubstr("2 blocks")));
}

TEST(ModelConfigTest, WhatIsWrittenReadsBackEqual) {
  for (const char* text :
       {R"({"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 9,
            "attn_pdrop": 0.25, "n_inner": 100})",
        R"({"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 9,
            "num_local_experts": 6, "router_jitter_noise": 0.5})",
        R"({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 96,
            "num_attention_heads": 6, "num_key_value_heads": 2,
            "vocab_size": 9, "head_dim": 10})"}) {
    const auto config = read(text);
    const std::string json = config.to_json_text();
    EXPECT_EQ(read(json).to_json_text(), json);
  }
}

TEST(ModelConfigTest, AllViolationsComeAtOnce) {
  EXPECT_THAT(
      error_of(R"({"n_layer": 0, "n_embd": 65, "n_head": 4, "n_hed": 4,
                   "resid_pdrop": 1.5})"),
      AllOf(HasSubstr("n_layer"), HasSubstr("expected a multiple of n_head"),
            HasSubstr("n_hed"), HasSubstr("resid_pdrop")));
  EXPECT_THAT(error_of("{}"), AllOf(HasSubstr("n_layer"), HasSubstr("n_embd"),
                                    HasSubstr("n_head")));
  EXPECT_THAT(error_of(R"({"model_type": "bert"})"), HasSubstr("model_type"));
}

TEST(ModelConfigTest, HeadsMustFit) {
  EXPECT_THAT(error_of(R"({"model_type": "llama", "num_hidden_layers": 1,
                   "hidden_size": 96, "num_attention_heads": 6,
                   "num_key_value_heads": 4})"),
              HasSubstr("expected a divisor of num_attention_heads"));
  EXPECT_THAT(error_of(R"({"model_type": "llama", "num_hidden_layers": 1,
                           "hidden_size": 90, "num_attention_heads": 6})"),
              HasSubstr("even"));
}

TEST(ModelConfigTest, WhatIsNotImplementedIsSaid) {
  EXPECT_THAT(error_of(R"({"n_layer": 1, "n_embd": 8, "n_head": 1,
                           "activation_function": "relu"})"),
              AllOf(HasSubstr("activation_function"), HasSubstr("gelu_new")));
  EXPECT_THAT(error_of(R"({"model_type": "llama", "num_hidden_layers": 1,
                   "hidden_size": 8, "num_attention_heads": 1,
                   "rope_scaling": {"type": "linear", "factor": 2}})"),
              HasSubstr("rope_scaling"));
}

}  // namespace
}  // namespace nfold::train
