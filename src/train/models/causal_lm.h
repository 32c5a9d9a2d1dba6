// File: causal_lm.h
//
// What training and generation need of a language model. The models are
// ordinary torch modules and know nothing of sharding; over a tensor group
// they split their layers, over a sequence group the tokens.
//
//   std::shared_ptr<CausalLm> model = make_model(config);
//   at::Tensor loss = model->loss(tokens, targets);
//
// Without a sequence group, own tokens below are all tokens. With groups, all
// ranks of each make the same calls. Not thread-safe (modules are not).
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string_view>

#include "nfold/group.h"
#include "nfold/tensor_parallel.h"
#include "train/models/model_config.h"

namespace nfold::train {

// Null: one rank does it alone. All must outlive the model.
struct ModelGroups {
  Group* tensor = nullptr;    // nfold/tensor_parallel.h
  Group* sequence = nullptr;  // nfold/sequence_parallel.h
  Group* expert = nullptr;    // nfold/moe.h
};

// What the mixtures of experts of a model did in one forward pass, with own
// tokens.
struct MixtureTally {
  std::int64_t num_mixtures = 0;
  std::int64_t num_choices = 0;  // tokens times experts per token
  std::int64_t num_dropped = 0;  // choices for which there was no room
  at::Tensor aux_loss{};         // the sum; undefined without mixtures
};

class CausalLm : public torch::nn::Module {
 public:
  CausalLm(const ModelConfig& config, const ModelGroups& groups)
      : groups_(groups),
        aux_loss_coefficient_(config.router_aux_loss_coefficient) {}

  // Own tokens [batch, length] of int64 -> what the last layer hands to the
  // head, [batch, length, hidden_size] in the parameters' dtype.
  virtual at::Tensor hidden_states(const at::Tensor& tokens) = 0;

  // [..., hidden_size] -> logits [..., vocab_size].
  at::Tensor project(const at::Tensor& hidden);
  // Logits [batch, length, vocab_size] of own tokens.
  at::Tensor forward(const at::Tensor& tokens);
  // Mean cross entropy over all tokens of the sequences, in fp32, the same on
  // all ranks of the groups; of own tokens and targets [batch, length] of
  // int64. While training, router_aux_loss_coef times the auxiliary loss of the
  // mixtures is added, the mean of the ranks of the sequence group.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets);
  // What follows the last of all tokens [batch, length], which every rank has:
  // logits [batch, vocab_size].
  at::Tensor next_logits(const at::Tensor& tokens);
  // Of the last call of loss(). Its auxiliary loss is not differentiable.
  const MixtureTally& mixtures() const { return mixtures_; }

 protected:
  // [vocab_size, hidden_size], or this rank's part of the rows.
  virtual const at::Tensor& head_weight() const = 0;
  const ModelGroups& groups() const { return groups_; }

  // hidden_states() of a model with mixtures fills it anew.
  MixtureTally mixtures_;

 private:
  // [..., hidden_size] -> this rank's part of the vocabulary.
  at::Tensor project_part(const at::Tensor& hidden);
  at::Tensor cross_entropy(const at::Tensor& tokens, const at::Tensor& targets);

  const ModelGroups groups_;
  const double aux_loss_coefficient_;
};

// Draws the initial weights from torch's random state, as GPT-2 did: that must
// be the same on all ranks of the groups. Raises c10::ValueError if
// config.vocab_size is not set, and for heads, widths, a vocabulary or
// positions that do not divide by the sizes of the groups.
std::shared_ptr<CausalLm> make_model(const ModelConfig& config,
                                     const ModelGroups& groups = {});

// Used by the models.

// The token embedding, and the head of a model that does not share its weight:
// [vocab_size, hidden_size] split over the vocabulary.
VocabParallelEmbedding make_embedding(const ModelConfig& config,
                                      const ModelGroups& groups);
ColumnParallelLinear make_head(const ModelConfig& config,
                               const ModelGroups& groups);
// Heads of one rank. `what`: which ones, for the error.
std::int64_t heads_per_rank(const ModelGroups& groups, std::string_view what,
                            std::int64_t num_heads);
// Raises c10::ValueError unless own tokens are [batch, length], the length of
// the whole sequence at most `max_positions`.
void check_tokens(const ModelGroups& groups, const at::Tensor& tokens,
                  std::int64_t max_positions);

}  // namespace nfold::train
