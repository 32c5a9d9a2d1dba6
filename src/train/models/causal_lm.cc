#include "train/models/causal_lm.h"

#include <ATen/Functions.h>

#include <utility>

#include "nfold/differentiable_collectives.h"
#include "nfold/sequence_parallel.h"
#include "train/models/gpt.h"
#include "train/models/llama.h"

namespace nfold::train {
namespace {

int size_of(const Group* group) { return group == nullptr ? 1 : group->size(); }

}  // namespace

at::Tensor CausalLm::project_part(const at::Tensor& hidden) {
  return at::linear(copy_to_group(groups_.tensor, hidden), head_weight());
}

at::Tensor CausalLm::project(const at::Tensor& hidden) {
  return gather_from_group(groups_.tensor, project_part(hidden));
}

at::Tensor CausalLm::forward(const at::Tensor& tokens) {
  return project(hidden_states(tokens));
}

at::Tensor CausalLm::loss(const at::Tensor& tokens, const at::Tensor& targets) {
  TORCH_CHECK_VALUE(tokens.sizes() == targets.sizes(), "loss: tokens are ",
                    tokens.sizes(), " but targets are ", targets.sizes(),
                    "; they must have one shape.");
  const auto loss = cross_entropy(tokens, targets);
  if (mixtures_.num_mixtures == 0) return loss;
  // Detached, so that the graph ends with the loss.
  const auto aux_loss =
      std::exchange(mixtures_.aux_loss, mixtures_.aux_loss.detach());
  if (!is_training()) return loss;
  return loss + aux_loss_coefficient_ *
                    reduce_from_group(groups_.sequence,
                                      aux_loss / size_of(groups_.sequence));
}

at::Tensor CausalLm::cross_entropy(const at::Tensor& tokens,
                                   const at::Tensor& targets) {
  const auto flat_targets = targets.flatten();
  // The logits are the largest activation: no name keeps them alive, and
  // to() copies only if they are not fp32 yet.
  if (size_of(groups_.tensor) * size_of(groups_.sequence) == 1) {
    return at::cross_entropy_loss(
        project_part(hidden_states(tokens).flatten(0, 1)).to(at::kFloat),
        flat_targets);
  }
  const auto token_losses = vocab_parallel_cross_entropy(
      groups_.tensor, project_part(hidden_states(tokens).flatten(0, 1)),
      flat_targets);
  return mean_over_sequence(groups_.sequence, token_losses, flat_targets);
}

at::Tensor CausalLm::next_logits(const at::Tensor& tokens) {
  // What fills the last ranks' parts comes after all tokens, which therefore
  // do not see it.
  const std::int64_t num_ranks = size_of(groups_.sequence);
  const std::int64_t length = tokens.size(1);
  const std::int64_t padding = (num_ranks - length % num_ranks) % num_ranks;
  const auto whole = at::constant_pad_nd(tokens, {0, padding});
  const auto hidden = gather_from_group(
      groups_.sequence, hidden_states(split_sequence(groups_.sequence, whole)),
      1);
  return project(hidden.select(1, length - 1));
}

std::shared_ptr<CausalLm> make_model(const ModelConfig& config,
                                     const ModelGroups& groups) {
  TORCH_CHECK_VALUE(config.vocab_size > 0,
                    "model.vocab_size is not set; expected the number of "
                    "tokens.");
  size_per_rank(groups.sequence,
                "positions of the model (n_positions or "
                "max_position_embeddings)",
                config.max_positions);
  if (config.model_type == "llama") {
    return std::make_shared<Llama>(config, groups);
  }
  TORCH_CHECK_VALUE(config.model_type == "gpt2", "model.model_type: found \"",
                    config.model_type, "\"; expected gpt2 or llama.");
  return std::make_shared<Gpt>(config, groups);
}

VocabParallelEmbedding make_embedding(const ModelConfig& config,
                                      const ModelGroups& groups) {
  VocabParallelEmbeddingOptions options;
  options.num_embeddings = config.vocab_size;
  options.embedding_dim = config.hidden_size;
  options.initialize = [deviation = config.initializer_range](
                           at::Tensor weight) { weight.normal_(0, deviation); };
  return VocabParallelEmbedding(options, groups.tensor);
}

ColumnParallelLinear make_head(const ModelConfig& config,
                               const ModelGroups& groups) {
  ParallelLinearOptions options;
  options.in = config.hidden_size;
  options.out = config.vocab_size;
  options.has_bias = false;
  options.initialize = [deviation = config.initializer_range](
                           at::Tensor weight, const at::Tensor&) {
    weight.normal_(0, deviation);
  };
  return ColumnParallelLinear(options, groups.tensor);
}

std::int64_t heads_per_rank(const ModelGroups& groups, std::string_view what,
                            std::int64_t num_heads) {
  const std::int64_t result = size_per_rank(groups.tensor, what, num_heads);
  // Attention would say so at the first step.
  size_per_rank(groups.sequence, what, result);
  return result;
}

void check_tokens(const ModelGroups& groups, const at::Tensor& tokens,
                  std::int64_t max_positions) {
  TORCH_CHECK_VALUE(tokens.dim() == 2 && tokens.scalar_type() == at::kLong,
                    "tokens must be int64 of shape [batch, length], found ",
                    tokens.scalar_type(), tokens.sizes(), ".");
  const std::int64_t length = tokens.size(1) * size_of(groups.sequence);
  TORCH_CHECK_VALUE(length <= max_positions, "found ", length,
                    " tokens in a row, but the model has ", max_positions,
                    " positions (n_positions or max_position_embeddings).");
}

}  // namespace nfold::train
