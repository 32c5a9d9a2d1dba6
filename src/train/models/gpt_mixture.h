// File: gpt_mixture.h
//
// The mixture of experts that stands in place of the MLP in some blocks of the
// GPT, and what becomes of its auxiliary loss.
//
//   if (has_mixture(config, i)) mixture = gpt_mixture(config, groups);
//   std::vector<at::Tensor> made = run_mixture(mixture, x);
//   tally.add(made, ...);
//
// Not thread-safe (modules are not).
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <vector>

#include "nfold/moe.h"
#include "train/models/causal_lm.h"

namespace nfold::train {

// Whether the block, counted from 0, has one: every decoder_sparse_step-th.
bool has_mixture(const ModelConfig& config, std::int64_t block);

// Experts are GptMlps, so that an expert's parameters are named
// experts.I.c_fc.weight and so on; over a tensor group each is split too.
// Nothing is dropped in evaluation: later tokens would push out earlier ones.
MixtureOfExperts gpt_mixture(const ModelConfig& config,
                             const ModelGroups& groups);

// {output, auxiliary loss, dropped choices}: tensors alone, which a checkpoint
// can hand on.
std::vector<at::Tensor> run_mixture(MixtureOfExperts& mixture,
                                    const at::Tensor& x);

// Adds a block's result if it has those three tensors. num_choices: tokens
// times experts per token.
void add_to(MixtureTally& tally, const std::vector<at::Tensor>& made,
            std::int64_t num_choices);

}  // namespace nfold::train
