// File: gating.h
//
// Which expert gets which token, and with what weight: top-1 and top-2 gating
// with a bounded number of tokens per expert. Pure, on this rank.
//
//   const Routing routing = route_tokens(logits, {.top_k = 2});
//   // Token tokens[i] goes to expert experts[i], as its positions[i]-th.
//
// Experts have room for `capacity` tokens each. All first choices come before
// all second ones, and within those the position in the sequence decides who
// fits; the rest is dropped. Of equal logits the lower expert wins.
//
// Everything is computed in fp32. Noise is drawn from torch's generator, so a
// seed determines it. Thread-safe as far as that generator is.
//
// Source: GShard (Lepikhin et al. 2020), DeepSpeed-MoE; what differs from the
// latter is listed in docs/mixture_of_experts.md.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

namespace nfold {

struct GatingOptions {
  int top_k = 1;  // or 2
  // Room, as a multiple of what each expert gets if all get the same.
  double capacity_factor = 1;
  std::int64_t min_capacity = 4;
  // false: every expert has room for all.
  bool drop_tokens = true;
  // Top-1: the choice is made with Gumbel noise on the logits (RSample).
  bool is_choice_sampled = false;
  // Top-1: chance decides who fits, not the position in the sequence.
  bool is_selection_random = false;
  // Top-2: the second choice is made with Gumbel noise on the logits.
  bool is_second_sampled = false;
};

// One entry for each token and expert that were brought together: the first
// choices by token, then the second ones by token.
struct Routing {
  at::Tensor tokens;     // int64, row of the logits
  at::Tensor experts;    // int64
  at::Tensor positions;  // int64, 0 to max_load - 1, unique within an expert
  // fp32, differentiable. Top-1: the probability of the expert. Top-2: those
  // of the token's experts, scaled so that they add up to 1.
  at::Tensor weights;
  // fp32, 0-dimensional, differentiable: experts * the sum over experts of
  // (mean probability * share of first choices). 1 when all are chosen alike,
  // more the less they are; 0 without tokens.
  at::Tensor aux_loss;
  // int64 [experts]: who chose the expert, dropped ones included.
  at::Tensor counts;
  std::int64_t max_load = 0;     // largest number that an expert gets
  std::int64_t num_dropped = 0;  // choices without room
};

// Rows of `logits` are tokens, any number including 0; columns are experts.
// Raises c10::ValueError unless logits are floating-point [tokens, experts]
// with at least top_k experts, and for options that check_gating refuses.
Routing route_tokens(const at::Tensor& logits, const GatingOptions& options);

// max(min_capacity, ceil(tokens / experts * capacity_factor * top_k)).
std::int64_t capacity_of(std::int64_t num_tokens, std::int64_t num_experts,
                         const GatingOptions& options);

// Raises c10::ValueError for top_k other than 1 and 2, capacity_factor that is
// not a positive number and min_capacity below 0.
void check_gating(const GatingOptions& options);

}  // namespace nfold
