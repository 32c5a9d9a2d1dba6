#include "parallel/gating.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace nfold {
namespace {

// Noise which turns an argmax of logits into a draw from their softmax.
at::Tensor gumbel_noise_like(const at::Tensor& logits) {
  return at::empty_like(logits).exponential_().log_().neg_();
}

// How many rows before each chose the same expert.
at::Tensor positions_in(const at::Tensor& chosen_by_row,
                        const at::Tensor& choice) {
  return chosen_by_row.cumsum(0).gather(1, choice.unsqueeze(1)).squeeze(1) - 1;
}

// Which choices fit when they are seated in an order drawn by lot.
at::Tensor fits_by_lot(const at::Tensor& chosen, const at::Tensor& choice,
                       std::int64_t capacity) {
  const auto order = at::randperm(choice.size(0), choice.options());
  const auto fits =
      positions_in(chosen.index_select(0, order), choice.index_select(0, order))
          .lt(capacity);
  return at::empty_like(fits).index_copy_(0, order, fits);
}

// The choices of one rank (first or second) of all tokens.
struct Choices {
  at::Tensor expert;    // int64 [tokens]
  at::Tensor position;  // int64 [tokens]
  at::Tensor fits;      // bool [tokens]
};

// The entries of those choices that fit. `gates` [tokens], of each choice.
void fill(Routing& routing, const std::vector<Choices>& ranks,
          const std::vector<at::Tensor>& gates) {
  std::vector<at::Tensor> tokens, experts, positions, weights;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto rows = ranks[i].fits.nonzero().squeeze(1);
    tokens.push_back(rows);
    experts.push_back(ranks[i].expert.index_select(0, rows));
    positions.push_back(ranks[i].position.index_select(0, rows));
    weights.push_back(gates[i].index_select(0, rows));
    routing.num_dropped += ranks[i].fits.size(0) - rows.size(0);
  }
  routing.tokens = at::cat(tokens);
  routing.experts = at::cat(experts);
  routing.positions = at::cat(positions);
  routing.weights = at::cat(weights);
}

at::Tensor balance_loss(const at::Tensor& probabilities,
                        const at::Tensor& first_counts) {
  // Means that are 0, not NaN, where there is no token.
  const auto num_tokens =
      static_cast<double>(std::max<std::int64_t>(probabilities.size(0), 1));
  const auto mean_probability = probabilities.sum(0) / num_tokens;
  const auto share = first_counts.to(at::kFloat) / num_tokens;
  return (mean_probability * share).sum() *
         static_cast<double>(probabilities.size(1));
}

// Of each token, the probability of its choice.
at::Tensor gate_of(const at::Tensor& probabilities, const Choices& choices) {
  return probabilities.gather(1, choices.expert.unsqueeze(1)).squeeze(1);
}

void route_first(Routing& routing, const at::Tensor& logits,
                 const at::Tensor& probabilities, std::int64_t capacity,
                 const GatingOptions& options) {
  Choices first;
  first.expert = options.is_choice_sampled
                     ? (logits + gumbel_noise_like(logits)).argmax(1)
                     : probabilities.argmax(1);
  auto chosen = at::one_hot(first.expert, logits.size(1));
  routing.counts = chosen.sum(0);
  routing.aux_loss = balance_loss(probabilities, routing.counts);
  if (options.is_selection_random && options.drop_tokens) {
    first.fits = fits_by_lot(chosen, first.expert, capacity);
    chosen = chosen * first.fits.unsqueeze(1);
    first.position = positions_in(chosen, first.expert);
  } else {
    first.position = positions_in(chosen, first.expert);
    first.fits = first.position.lt(capacity);
  }
  fill(routing, {first}, {gate_of(probabilities, first)});
}

void route_both(Routing& routing, const at::Tensor& logits,
                const at::Tensor& probabilities, std::int64_t capacity,
                const GatingOptions& options) {
  Choices first;
  Choices second;
  first.expert = probabilities.argmax(1);
  const auto chosen_first = at::one_hot(first.expert, logits.size(1));
  const auto noisy =
      options.is_second_sampled ? logits + gumbel_noise_like(logits) : logits;
  second.expert = noisy
                      .masked_fill(chosen_first.to(at::kBool),
                                   -std::numeric_limits<float>::infinity())
                      .argmax(1);
  const auto chosen_second = at::one_hot(second.expert, logits.size(1));
  const auto first_counts = chosen_first.sum(0);
  routing.counts = first_counts + chosen_second.sum(0);
  routing.aux_loss = balance_loss(probabilities, first_counts);

  first.position = positions_in(chosen_first, first.expert);
  second.position = positions_in(chosen_second, second.expert) +
                    first_counts.index_select(0, second.expert);
  first.fits = first.position.lt(capacity);
  second.fits = second.position.lt(capacity);

  // A choice without room weighs nothing, so the other one gets all of it.
  const auto first_gate = gate_of(probabilities, first) * first.fits;
  const auto second_gate = gate_of(probabilities, second) * second.fits;
  const auto sum = (first_gate + second_gate)
                       .clamp_min(std::numeric_limits<float>::epsilon());
  fill(routing, {first, second}, {first_gate / sum, second_gate / sum});
}

}  // namespace

void check_gating(const GatingOptions& options) {
  TORCH_CHECK_VALUE(options.top_k == 1 || options.top_k == 2,
                    "top_k: expected 1 or 2 experts per token but found ",
                    options.top_k);
  TORCH_CHECK_VALUE(
      options.capacity_factor > 0 && std::isfinite(options.capacity_factor),
      "capacity_factor: expected a number above 0 but found ",
      options.capacity_factor,
      "; to keep all tokens, set drop_tokens to false");
  TORCH_CHECK_VALUE(options.min_capacity >= 0,
                    "min_capacity: expected 0 or more but found ",
                    options.min_capacity);
}

std::int64_t capacity_of(std::int64_t num_tokens, std::int64_t num_experts,
                         const GatingOptions& options) {
  // In fp32 as elsewhere: 110 tokens per expert and a factor of 1.1 make 121,
  // where fp64 would round up to 122.
  const auto share = static_cast<float>(static_cast<double>(num_tokens) /
                                        static_cast<double>(num_experts));
  const auto factor =
      static_cast<float>(options.capacity_factor * options.top_k);
  return std::max(options.min_capacity,
                  static_cast<std::int64_t>(std::ceil(share * factor)));
}

Routing route_tokens(const at::Tensor& logits, const GatingOptions& options) {
  check_gating(options);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.is_floating_point(),
                    "route_tokens: logits must be floating-point of shape "
                    "[tokens, experts], found ",
                    logits.scalar_type(), logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) >= options.top_k, "route_tokens: top_k is ",
                    options.top_k, ", but there are ", logits.size(1),
                    " experts");
  const auto wide = logits.to(at::kFloat);
  const auto probabilities = wide.softmax(1);
  const std::int64_t capacity =
      options.drop_tokens ? capacity_of(logits.size(0), logits.size(1), options)
                          : logits.size(0) * options.top_k;
  Routing routing;
  // Nothing is differentiated through the choices themselves.
  const auto choosing = wide.detach();
  if (options.top_k == 1) {
    route_first(routing, choosing, probabilities, capacity, options);
  } else {
    route_both(routing, choosing, probabilities, capacity, options);
  }
  routing.max_load =
      std::min(capacity, routing.counts.max().item<std::int64_t>());
  return routing;
}

}  // namespace nfold
