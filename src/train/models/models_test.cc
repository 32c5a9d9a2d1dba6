#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nfold/errors.h"
#include "train/models/causal_lm.h"

namespace nfold::train {
namespace {

ModelConfig small_config(const std::string& type) {
  ModelConfig config;
  config.model_type = type;
  config.vocab_size = 61;
  config.num_layers = 3;
  config.hidden_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = type == "llama" ? 2 : 4;
  config.head_dim = 8;
  config.intermediate_size = 48;
  config.max_positions = 24;
  config.tie_word_embeddings = true;
  return config;
}

std::shared_ptr<CausalLm> seeded(const ModelConfig& config) {
  at::manual_seed(5);
  return make_model(config);
}

at::Tensor some_tokens(std::int64_t batch = 2, std::int64_t length = 16) {
  at::manual_seed(9);
  return at::randint(0, 61, {batch, length}, at::kLong);
}

class ModelsTest : public testing::TestWithParam<std::string> {
 protected:
  ModelConfig config_ = small_config(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Types, ModelsTest, testing::Values("gpt2", "llama"),
                         [](const auto& info) { return info.param; });

TEST_P(ModelsTest, LogitsHaveOneRowForEachToken) {
  auto model = seeded(config_);
  EXPECT_EQ(model->forward(some_tokens()).sizes(),
            at::IntArrayRef({2, 16, 61}));
  EXPECT_EQ(model->hidden_states(some_tokens()).sizes(),
            at::IntArrayRef({2, 16, 32}));
}

TEST_P(ModelsTest, LaterTokensDoNotChangeEarlierLogits) {
  auto model = seeded(config_);
  auto tokens = some_tokens();
  const auto before = model->forward(tokens);
  tokens.slice(1, 10).fill_(3);
  const auto after = model->forward(tokens);
  EXPECT_TRUE(
      at::allclose(before.slice(1, 0, 10), after.slice(1, 0, 10), 0, 1e-6));
  EXPECT_FALSE(at::allclose(before.slice(1, 10), after.slice(1, 10), 0, 1e-4));
}

TEST_P(ModelsTest, OrderOfEarlierTokensMatters) {
  auto model = seeded(config_);
  auto tokens = some_tokens(1);
  auto swapped = tokens.clone();
  swapped[0][2] = tokens[0][7];
  swapped[0][7] = tokens[0][2];
  EXPECT_FALSE(at::allclose(model->forward(tokens).select(1, 15),
                            model->forward(swapped).select(1, 15), 0, 1e-6));
}

TEST_P(ModelsTest, LossOfAFreshModelIsThatOfAGuess) {
  auto model = seeded(config_);
  const auto loss = model->loss(some_tokens(), some_tokens().roll(1, 1));
  EXPECT_EQ(loss.dim(), 0);
  EXPECT_NEAR(loss.item<double>(), std::log(61.0), 0.15);
}

TEST_P(ModelsTest, TiedHeadIsOneParameter) {
  auto tied = seeded(config_);
  config_.tie_word_embeddings = false;
  auto untied = seeded(config_);
  EXPECT_EQ(untied->parameters().size(), tied->parameters().size() + 1);
  EXPECT_TRUE(untied->named_parameters().contains("lm_head.weight"));
  EXPECT_FALSE(tied->named_parameters().contains("lm_head.weight"));
  // The head follows the embedding.
  const std::string name = GetParam() == "llama" ? "model.embed_tokens.weight"
                                                 : "transformer.wte.weight";
  at::NoGradGuard no_grad;
  tied->named_parameters()[name].zero_();
  EXPECT_EQ(tied->forward(some_tokens()).abs().max().item<float>(), 0);
}

std::vector<at::Tensor> gradients(CausalLm& model) {
  at::manual_seed(11);
  model.zero_grad();
  const auto loss = model.loss(some_tokens(), some_tokens().roll(1, 1));
  loss.backward();
  std::vector<at::Tensor> result = {loss.detach()};
  for (const auto& param : model.parameters()) {
    result.push_back(param.grad().clone());
  }
  return result;
}

TEST_P(ModelsTest, ActivationCheckpointingChangesNoBit) {
  config_.residual_dropout = 0.2;
  config_.attention_dropout = 0.1;
  const auto plain = gradients(*seeded(config_));
  config_.activation_checkpointing = true;
  const auto dropped = gradients(*seeded(config_));
  ASSERT_EQ(plain.size(), dropped.size());
  for (std::size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(at::equal(plain[i], dropped[i])) << "gradient " << i;
  }
}

TEST_P(ModelsTest, DropoutIsForTrainingOnly) {
  config_.residual_dropout = 0.5;
  config_.attention_dropout = 0.5;
  auto model = seeded(config_);
  const auto tokens = some_tokens();
  EXPECT_FALSE(at::equal(model->forward(tokens), model->forward(tokens)));
  model->eval();
  EXPECT_TRUE(at::equal(model->forward(tokens), model->forward(tokens)));
}

TEST_P(ModelsTest, LossIsFp32InBf16Too) {
  auto model = seeded(config_);
  model->to(at::kBFloat16);
  const auto loss = model->loss(some_tokens(), some_tokens().roll(1, 1));
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  EXPECT_NEAR(loss.item<double>(), std::log(61.0), 0.2);
}

TEST_P(ModelsTest, LearnsASequenceByHeart) {
  auto model = seeded(config_);
  torch::optim::AdamW optimizer(model->parameters(),
                                torch::optim::AdamWOptions(3e-3));
  const auto tokens = some_tokens(1, 17);
  double loss = 0;
  for (int step = 0; step < 150; ++step) {
    optimizer.zero_grad();
    auto value = model->loss(tokens.slice(1, 0, 16), tokens.slice(1, 1));
    value.backward();
    optimizer.step();
    loss = value.item<double>();
  }
  EXPECT_LT(loss, 0.1);
}

TEST_P(ModelsTest, BadTokensAreErrors) {
  auto model = seeded(config_);
  EXPECT_THROW(model->forward(some_tokens(1, 25)), c10::ValueError);
  EXPECT_THROW(model->forward(some_tokens().to(at::kInt)), c10::ValueError);
  EXPECT_THROW(model->loss(some_tokens(2, 8), some_tokens(2, 9)),
               c10::ValueError);
}

TEST(GptTest, HasTheNamesAndShapesOfHuggingFace) {
  const auto params = seeded(small_config("gpt2"))->named_parameters();
  const std::pair<const char*, std::vector<std::int64_t>> expected[] = {
      {"transformer.wte.weight", {61, 32}},
      {"transformer.wpe.weight", {24, 32}},
      {"transformer.h.2.ln_1.weight", {32}},
      {"transformer.h.2.ln_1.bias", {32}},
      {"transformer.h.2.attn.c_attn.weight", {32, 96}},
      {"transformer.h.2.attn.c_attn.bias", {96}},
      {"transformer.h.2.attn.c_proj.weight", {32, 32}},
      {"transformer.h.2.ln_2.weight", {32}},
      {"transformer.h.2.mlp.c_fc.weight", {32, 48}},
      {"transformer.h.2.mlp.c_proj.weight", {48, 32}},
      {"transformer.ln_f.bias", {32}}};
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(params.contains(name)) << name;
    EXPECT_EQ(params[name].sizes(), at::IntArrayRef(shape)) << name;
  }
  EXPECT_EQ(params.size(), 2u + 3u * 12u + 2u);
}

TEST(LlamaTest, HasTheNamesAndShapesOfHuggingFace) {
  const auto params = seeded(small_config("llama"))->named_parameters();
  const std::pair<const char*, std::vector<std::int64_t>> expected[] = {
      {"model.embed_tokens.weight", {61, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.k_proj.weight", {16, 32}},
      {"model.layers.0.self_attn.v_proj.weight", {16, 32}},
      {"model.layers.0.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.mlp.gate_proj.weight", {48, 32}},
      {"model.layers.0.mlp.up_proj.weight", {48, 32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 48}},
      {"model.norm.weight", {32}}};
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(params.contains(name)) << name;
    EXPECT_EQ(params[name].sizes(), at::IntArrayRef(shape)) << name;
  }
  EXPECT_EQ(params.size(), 1u + 3u * 9u + 1u);
}

// The whole forward pass again, from the definition and without the fused
// operators that the models use.
at::Tensor reference_attention(at::Tensor q, at::Tensor k, at::Tensor v) {
  const auto length = q.size(-2);
  const auto mask = at::ones({length, length}, at::kBool).triu(1);
  auto scores = at::matmul(q, k.transpose(-1, -2)) /
                std::sqrt(static_cast<double>(q.size(-1)));
  return at::matmul(scores.masked_fill(mask, -INFINITY).softmax(-1), v);
}

TEST(GptTest, AgreesWithTheDefinition) {
  auto model = seeded(small_config("gpt2"));
  const auto p = model->named_parameters();
  const auto tokens = some_tokens();
  at::NoGradGuard no_grad;
  auto norm = [&](const at::Tensor& x, const std::string& name) {
    const auto centred = x - x.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + 1e-5).sqrt() *
               p[name + ".weight"] +
           p[name + ".bias"];
  };
  auto project = [&](const at::Tensor& x, const std::string& name) {
    return at::matmul(x, p[name + ".weight"]) + p[name + ".bias"];
  };
  auto x = p["transformer.wte.weight"].index({tokens}) +
           p["transformer.wpe.weight"].slice(0, 0, 16);
  for (int i = 0; i < 3; ++i) {
    const std::string h = "transformer.h." + std::to_string(i) + ".";
    const auto qkv =
        project(norm(x, h + "ln_1"), h + "attn.c_attn").chunk(3, -1);
    auto heads = [](const at::Tensor& t) {
      return t.view({2, 16, 4, 8}).transpose(1, 2);
    };
    const auto y =
        reference_attention(heads(qkv[0]), heads(qkv[1]), heads(qkv[2]));
    x = x + project(y.transpose(1, 2).reshape({2, 16, 32}), h + "attn.c_proj");
    const auto u = project(norm(x, h + "ln_2"), h + "mlp.c_fc");
    const auto gelu =
        0.5 * u *
        (1 + (std::sqrt(2 / M_PI) * (u + 0.044715 * u.pow(3))).tanh());
    x = x + project(gelu, h + "mlp.c_proj");
  }
  const auto expected =
      at::matmul(norm(x, "transformer.ln_f"), p["transformer.wte.weight"].t());
  EXPECT_TRUE(at::allclose(model->forward(tokens), expected, 1e-4, 1e-5));
}

TEST(LlamaTest, AgreesWithTheDefinition) {
  auto model = seeded(small_config("llama"));
  const auto p = model->named_parameters();
  const auto tokens = some_tokens();
  at::NoGradGuard no_grad;
  auto norm = [&](const at::Tensor& x, const std::string& name) {
    return x / (x.square().mean(-1, true) + 1e-5).sqrt() * p[name + ".weight"];
  };
  auto project = [&](const at::Tensor& x, const std::string& name) {
    return at::matmul(x, p[name + ".weight"].t());
  };
  // Elements i and i + 4 of a head are a complex number that turns by
  // position * 10000^(-i / 4).
  auto rotate = [](const at::Tensor& t) {
    const auto number =
        at::complex(t.slice(-1, 0, 4), t.slice(-1, 4).contiguous());
    const auto angle =
        at::outer(at::arange(16, at::kFloat),
                  at::pow(10000.0, -at::arange(4, at::kFloat) / 4));
    const auto turned = number * at::polar(at::ones_like(angle), angle);
    return at::cat({at::real(turned), at::imag(turned)}, -1);
  };
  auto x = p["model.embed_tokens.weight"].index({tokens});
  for (int i = 0; i < 3; ++i) {
    const std::string l = "model.layers." + std::to_string(i) + ".";
    const auto n = norm(x, l + "input_layernorm");
    auto heads = [&](const std::string& name, std::int64_t num_heads) {
      return project(n, l + "self_attn." + name)
          .view({2, 16, num_heads, 8})
          .transpose(1, 2)
          .repeat_interleave(4 / num_heads, 1);
    };
    const auto y =
        reference_attention(rotate(heads("q_proj", 4)),
                            rotate(heads("k_proj", 2)), heads("v_proj", 2));
    x = x +
        project(y.transpose(1, 2).reshape({2, 16, 32}), l + "self_attn.o_proj");
    const auto m = norm(x, l + "post_attention_layernorm");
    const auto gate = project(m, l + "mlp.gate_proj");
    x = x + project(gate * gate.sigmoid() * project(m, l + "mlp.up_proj"),
                    l + "mlp.down_proj");
  }
  const auto expected =
      at::matmul(norm(x, "model.norm"), p["model.embed_tokens.weight"].t());
  EXPECT_TRUE(at::allclose(model->forward(tokens), expected, 1e-4, 1e-5));
}

TEST(LlamaTest, GroupedAttentionIsMultiHeadWithRepeatedHeads) {
  auto grouped_config = small_config("llama");
  auto full_config = grouped_config;
  full_config.num_kv_heads = full_config.num_heads;
  auto grouped = seeded(grouped_config);
  auto full = seeded(full_config);
  at::NoGradGuard no_grad;
  const auto from = grouped->named_parameters();
  for (const auto& item : full->named_parameters()) {
    auto source = from[item.key()];
    if (source.sizes() != item.value().sizes()) {
      source = source.view({2, 8, 32}).repeat_interleave(2, 0).view({32, 32});
    }
    item.value().copy_(source);
  }
  EXPECT_TRUE(at::allclose(grouped->forward(some_tokens()),
                           full->forward(some_tokens()), 1e-5, 1e-6));
}

TEST(ModelTest, SmallerStartOfResidualProjections) {
  auto config = small_config("gpt2");
  config.hidden_size = 128;
  config.head_dim = 32;
  config.intermediate_size = 512;
  config.num_layers = 8;
  const auto p = seeded(config)->named_parameters();
  auto deviation = [&](const char* name) {
    return p[name].std().item<double>();
  };
  EXPECT_NEAR(deviation("transformer.h.0.mlp.c_fc.weight"), 0.02, 5e-4);
  EXPECT_NEAR(deviation("transformer.h.7.mlp.c_proj.weight"), 0.005, 2e-4);
  EXPECT_EQ(p["transformer.h.0.mlp.c_fc.bias"].abs().max().item<float>(), 0);
}

TEST(ModelTest, VocabularyMustBeSet) {
  auto config = small_config("gpt2");
  config.vocab_size = 0;
  EXPECT_THROW(make_model(config), c10::ValueError);
}

}  // namespace
}  // namespace nfold::train
