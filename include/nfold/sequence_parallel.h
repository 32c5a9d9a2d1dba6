// File: nfold/sequence_parallel.h
//
// Long sequences split over a sequence group: each rank has as many tokens of
// every sequence and runs the whole model on them. Only attention sees all
// tokens; around it, an all-to-all trades tokens for heads and another trades
// them back.
//
//   tokens = nfold::split_sequence(group, tokens, 1);        // own tokens
//   auto positions = nfold::sequence_offset(group, tokens.size(1)) + arange;
//   auto y = nfold::sequence_parallel_attention(
//       group, q, k, v, [](const auto& q, const auto& k, const auto& v) {
//         return at::scaled_dot_product_attention(q, k, v, {}, 0, true);
//       });
//   auto loss = nfold::sequence_parallel_cross_entropy(group, logits, targets);
//
// In a group of one rank, or with null for a group, each is the plain
// computation. Parameters are the same on every rank; each rank's gradients
// are those of its tokens, so they must be summed over the sequence group and
// averaged over the data ranks: a sum over both, divided by (their number /
// size of the sequence group), as an Engine does.
//
// All ranks of the group must call each in the same order with tensors of one
// shape, and run backward alike. The group must outlive the graph.
//
// Source: Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling
// Training of Extreme Long Sequence Transformer Models".
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <functional>

#include "nfold/group.h"

namespace nfold {

// This rank's tokens, of `dim`, from the whole sequence that every rank has.
// A view, with plain gradients: for tokens and targets. Raises c10::ValueError
// for a length that does not divide by the group's size.
at::Tensor split_sequence(const Group* group, const at::Tensor& whole,
                          std::int64_t dim = 1);

// The position of this rank's first token; `length` is the number of its own.
std::int64_t sequence_offset(const Group* group, std::int64_t length);

// query [batch, heads, length, head_dim], key and value [batch, kv_heads,
// length, head_dim] of this rank's tokens -> the same shape as query's.
// `attention` gets and returns [batch, heads / N, N * length, head_dim]: all
// tokens of some heads. With kv_heads < heads (grouped-query attention), heads
// / kv_heads neighbouring heads share one, as scaled_dot_product_attention
// with enable_gqa has it.
//
// Raises c10::ValueError for heads or kv_heads that do not divide by the
// group's size.
at::Tensor sequence_parallel_attention(
    Group* group, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value,
    const std::function<at::Tensor(const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&)>& attention);

// The mean over the tokens of all ranks that count, those whose target is not
// -100: a scalar, the same on every rank. token_losses and targets have one
// shape. The gradient of each rank is that of its own tokens.
at::Tensor mean_over_sequence(Group* group, const at::Tensor& token_losses,
                              const at::Tensor& targets);

// mean_over_sequence of the cross entropy, in fp32, of logits [..., vocabulary]
// and targets [...] of this rank's tokens.
at::Tensor sequence_parallel_cross_entropy(Group* group,
                                           const at::Tensor& logits,
                                           const at::Tensor& targets);

}  // namespace nfold
