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

// Null: one rank does it alone. Both must outlive the model.
struct ModelGroups {
  Group* tensor = nullptr;    // nfold/tensor_parallel.h
  Group* sequence = nullptr;  // nfold/sequence_parallel.h
};

class CausalLm : public torch::nn::Module {
 public:
  explicit CausalLm(const ModelGroups& groups) : groups_(groups) {}

  // Own tokens [batch, length] of int64 -> what the last layer hands to the
  // head, [batch, length, hidden_size] in the parameters' dtype.
  virtual at::Tensor hidden_states(const at::Tensor& tokens) = 0;

  // [..., hidden_size] -> logits [..., vocab_size].
  at::Tensor project(const at::Tensor& hidden);
  // Logits [batch, length, vocab_size] of own tokens.
  at::Tensor forward(const at::Tensor& tokens);
  // Mean cross entropy over all tokens of the sequences, in fp32, the same on
  // all ranks of the groups; of own tokens and targets [batch, length] of
  // int64.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets);
  // What follows the last of all tokens [batch, length], which every rank has:
  // logits [batch, vocab_size].
  at::Tensor next_logits(const at::Tensor& tokens);

 protected:
  // [vocab_size, hidden_size], or this rank's part of the rows.
  virtual const at::Tensor& head_weight() const = 0;
  const ModelGroups& groups() const { return groups_; }

 private:
  // [..., hidden_size] -> this rank's part of the vocabulary.
  at::Tensor project_part(const at::Tensor& hidden);

  const ModelGroups groups_;
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
