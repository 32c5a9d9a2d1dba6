#include "nfold/moe.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "nfold/collectives.h"
#include "nfold/differentiable_collectives.h"
#include "parallel/gating.h"

// [Note: room in a mixture]
// A rank decides by itself which of its tokens are dropped: the capacity is a
// function of its own number of tokens. What is sent for each expert is as
// many rows as the fullest expert of any rank of the group gets, which is at
// most the capacity, and usually less. The ranks agree on that number in each
// forward pass. So ranks may have different numbers of tokens, and nothing is
// sent for room that nobody needs.
//
// [Note: the graph of a mixture]
// Whatever the tokens are, the operators are the same on every rank: backward
// passes the two all-to-alls in the same order everywhere, and a checkpoint
// (nfold/activation_checkpoint.h) saves the same tensors. So there is no early
// return for a rank without tokens, and at least one row is sent, since not
// every expert can be run on none.

namespace nfold {
namespace {

constexpr char kExperts[] = "experts.";

GatingOptions gating_options(const MixtureOptions& options, bool is_training) {
  return {.top_k = options.top_k,
          .capacity_factor = is_training ? options.capacity_factor
                                         : options.eval_capacity_factor,
          .min_capacity = options.min_capacity,
          .drop_tokens = options.drop_tokens,
          .is_choice_sampled =
              is_training && options.noisy_gate == NoisyGate::kRSample,
          .is_selection_random = is_training && options.is_selection_random,
          .is_second_sampled = is_training && options.is_second_sampled};
}

void check_mixture(const MixtureOptions& options, int num_ranks) {
  check_gating(gating_options(options, true));
  check_gating(gating_options(options, false));
  TORCH_CHECK_VALUE(options.hidden_size > 0,
                    "hidden_size: expected at least 1 but found ",
                    options.hidden_size);
  TORCH_CHECK_VALUE(options.num_experts >= options.top_k,
                    "num_experts: expected at least top_k, which is ",
                    options.top_k, ", but found ", options.num_experts);
  TORCH_CHECK_VALUE(options.num_experts % num_ranks == 0,
                    "num_experts: ", options.num_experts,
                    " experts do not divide over the ", num_ranks,
                    " ranks of group '", options.expert_group->name(),
                    "'; choose a multiple, or another expert_parallel_size");
  TORCH_CHECK_VALUE(options.jitter >= 0 && options.jitter < 1,
                    "jitter: expected a number from 0 to below 1 but found ",
                    options.jitter);
  TORCH_CHECK_VALUE(
      options.noisy_gate != NoisyGate::kRSample || options.top_k == 1,
      "noisy_gate: kRSample draws the only expert of a token, but top_k is ",
      options.top_k, "; use is_second_sampled");
}

// The largest number of any rank of the group.
std::int64_t agreed_maximum(Group& group, std::int64_t number) {
  const auto numbers = at::full({1}, number, at::kLong);
  all_reduce(group, numbers, ReduceOp::kMax).wait();
  return numbers.item<std::int64_t>();
}

}  // namespace

MixtureOfExpertsImpl::MixtureOfExpertsImpl(const MixtureOptions& options,
                                           const ExpertFactory& make_expert)
    : options_(options) {
  check_mixture(options_, num_ranks());
  gate_ = register_module(
      "gate", torch::nn::Linear(torch::nn::LinearOptions(options_.hidden_size,
                                                         options_.num_experts)
                                    .bias(false)));
  auto container = register_module(
      "experts", std::make_shared<torch::nn::Module>("Experts"));
  const std::int64_t num_local = options_.num_experts / num_ranks();
  const std::int64_t rank =
      options_.expert_group ? options_.expert_group->rank() : 0;
  for (std::int64_t i = 0; i < options_.num_experts; ++i) {
    Expert expert = make_expert();
    if (i / num_local != rank) continue;
    container->register_module(std::to_string(i), expert.module);
    experts_.push_back(std::move(expert));
  }
  if (!options_.has_residual) return;
  residual_.push_back(make_expert());
  register_module("mlp", residual_.front().module);
  coefficient_ = register_module("coefficient",
                                 torch::nn::Linear(options_.hidden_size, 2));
}

int MixtureOfExpertsImpl::num_ranks() const {
  return options_.expert_group ? options_.expert_group->size() : 1;
}

MixtureOutput MixtureOfExpertsImpl::forward(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) == options_.hidden_size &&
                        x.is_floating_point(),
                    "MixtureOfExperts: expected floating-point numbers of "
                    "shape [..., ",
                    options_.hidden_size, "], which is hidden_size, but found ",
                    x.scalar_type(), x.sizes());
  const auto tokens = x.reshape({-1, options_.hidden_size});
  const Routing routing =
      route_tokens(logits_of(tokens), gating_options(options_, is_training()));
  // See [Note: room in a mixture].
  std::int64_t rows = std::max<std::int64_t>(routing.max_load, 1);
  if (num_ranks() > 1) rows = agreed_maximum(*options_.expert_group, rows);

  const auto slots = routing.experts * rows + routing.positions;
  const auto sent =
      at::zeros({options_.num_experts * rows, options_.hidden_size},
                tokens.options().requires_grad(false))
          .index_copy(0, slots, tokens.index_select(0, routing.tokens));
  const auto weighted = run_experts(sent, rows).index_select(0, slots) *
                        routing.weights.to(tokens.dtype()).unsqueeze(1);
  const auto output =
      at::zeros_like(tokens).index_add(0, routing.tokens, weighted);
  return {.output = with_residual(tokens, output).view(x.sizes()),
          .aux_loss = routing.aux_loss,
          .counts = routing.counts,
          .num_dropped = routing.num_dropped};
}

at::Tensor MixtureOfExpertsImpl::logits_of(const at::Tensor& tokens) {
  auto input = tokens.to(at::kFloat);
  if (is_training() && options_.noisy_gate == NoisyGate::kJitter) {
    const auto factors = at::empty_like(input).uniform_(1 - options_.jitter,
                                                        1 + options_.jitter);
    input = input * factors;
  }
  return at::linear(input, gate_->weight.to(at::kFloat));
}

at::Tensor MixtureOfExpertsImpl::run_experts(const at::Tensor& sent,
                                             std::int64_t rows) {
  const auto num_local = static_cast<std::int64_t>(experts_.size());
  const std::int64_t ranks = num_ranks();
  const auto arrived =
      all_to_all(options_.expert_group, sent)
          .view({ranks, num_local, rows, options_.hidden_size});
  std::vector<at::Tensor> outputs;
  for (std::int64_t i = 0; i < num_local; ++i) {
    const auto input =
        arrived.select(1, i).reshape({ranks * rows, options_.hidden_size});
    auto output = experts_[static_cast<std::size_t>(i)].forward(input);
    TORCH_CHECK_VALUE(output.sizes() == input.sizes() &&
                          output.scalar_type() == input.scalar_type(),
                      "MixtureOfExperts: an expert made ", output.scalar_type(),
                      output.sizes(), " of ", input.scalar_type(),
                      input.sizes(), "; it must keep shape and dtype");
    outputs.push_back(output.view({ranks, rows, options_.hidden_size}));
  }
  return all_to_all(options_.expert_group, at::stack(outputs, 1))
      .view(sent.sizes());
}

at::Tensor MixtureOfExpertsImpl::with_residual(const at::Tensor& tokens,
                                               const at::Tensor& output) {
  if (residual_.empty()) return output;
  const auto shares = coefficient_->forward(tokens).softmax(-1);
  return output * shares.slice(1, 0, 1) +
         residual_.front().forward(tokens) * shares.slice(1, 1, 2);
}

Placement MixtureOfExpertsImpl::placement_of(const std::string& param) const {
  if (!param.starts_with(kExperts)) return {};
  return {.expert_size = num_ranks()};
}

}  // namespace nfold
