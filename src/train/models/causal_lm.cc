#include "train/models/causal_lm.h"

#include <ATen/Functions.h>

#include "train/models/gpt.h"
#include "train/models/llama.h"

namespace nfold::train {

at::Tensor CausalLm::forward(const at::Tensor& tokens) {
  return project(hidden_states(tokens));
}

at::Tensor CausalLm::loss(const at::Tensor& tokens, const at::Tensor& targets) {
  TORCH_CHECK_VALUE(tokens.sizes() == targets.sizes(), "loss: tokens are ",
                    tokens.sizes(), " but targets are ", targets.sizes(),
                    "; they must have one shape.");
  // The logits are the largest activation: no name keeps them alive, and
  // to() copies only if they are not fp32 yet.
  return at::cross_entropy_loss(
      project(hidden_states(tokens).flatten(0, 1)).to(at::kFloat),
      targets.flatten());
}

std::shared_ptr<CausalLm> make_model(const ModelConfig& config) {
  TORCH_CHECK_VALUE(config.vocab_size > 0,
                    "model.vocab_size is not set; expected the number of "
                    "tokens.");
  if (config.model_type == "llama") return std::make_shared<Llama>(config);
  TORCH_CHECK_VALUE(config.model_type == "gpt2", "model.model_type: found \"",
                    config.model_type, "\"; expected gpt2 or llama.");
  return std::make_shared<Gpt>(config);
}

void check_tokens(const at::Tensor& tokens, std::int64_t max_positions) {
  TORCH_CHECK_VALUE(tokens.dim() == 2 && tokens.scalar_type() == at::kLong,
                    "tokens must be int64 of shape [batch, length], found ",
                    tokens.scalar_type(), tokens.sizes(), ".");
  TORCH_CHECK_VALUE(tokens.size(1) <= max_positions, "found ", tokens.size(1),
                    " tokens in a row, but the model has ", max_positions,
                    " positions (n_positions or max_position_embeddings).");
}

}  // namespace nfold::train
