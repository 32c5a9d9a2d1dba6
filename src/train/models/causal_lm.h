// File: causal_lm.h
//
// What training and generation need of a language model. The models are
// ordinary torch modules and know nothing of sharding.
//
//   std::shared_ptr<CausalLm> model = make_model(config);
//   at::Tensor loss = model->loss(tokens, targets);
//
// Not thread-safe (modules are not).
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>

#include <memory>

#include "train/models/model_config.h"

namespace nfold::train {

class CausalLm : public torch::nn::Module {
 public:
  // tokens [batch, length] of int64 -> what the last layer hands to the head,
  // [batch, length, hidden_size] in the parameters' dtype.
  virtual at::Tensor hidden_states(const at::Tensor& tokens) = 0;
  // [..., hidden_size] -> logits [..., vocab_size].
  virtual at::Tensor project(const at::Tensor& hidden) = 0;

  // Logits [batch, length, vocab_size].
  at::Tensor forward(const at::Tensor& tokens);
  // Mean cross entropy, in fp32, of targets [batch, length] of int64.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets);
};

// Draws the initial weights from torch's random state, as GPT-2 did. Raises
// c10::ValueError if config.vocab_size is not set.
std::shared_ptr<CausalLm> make_model(const ModelConfig& config);

// Raises c10::ValueError unless tokens is [batch, length], length at most
// `max_positions`. Used by the models.
void check_tokens(const at::Tensor& tokens, std::int64_t max_positions);

}  // namespace nfold::train
