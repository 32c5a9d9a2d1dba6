#include "train/models/gpt_mixture.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "train/models/gpt.h"

namespace nfold::train {

bool has_mixture(const ModelConfig& config, std::int64_t block) {
  return config.num_experts > 0 &&
         (block + 1) % config.decoder_sparse_step == 0;
}

MixtureOfExperts gpt_mixture(const ModelConfig& config,
                             const ModelGroups& groups) {
  const MixtureOptions options{
      .hidden_size = config.hidden_size,
      .num_experts = config.num_experts,
      .top_k = static_cast<int>(config.experts_per_token),
      .capacity_factor = config.expert_capacity_factor,
      // Room for every token in every expert.
      .eval_capacity_factor = static_cast<double>(config.num_experts),
      .noisy_gate =
          config.router_jitter > 0 ? NoisyGate::kJitter : NoisyGate::kNone,
      .jitter = config.router_jitter,
      .expert_group = groups.expert};
  MixtureOfExperts mixture(options, [&] { return GptMlp(config, groups); });
  at::NoGradGuard no_grad;
  mixture->named_parameters()["gate.weight"].normal_(0,
                                                     config.initializer_range);
  return mixture;
}

std::vector<at::Tensor> run_mixture(MixtureOfExperts& mixture,
                                    const at::Tensor& x) {
  const auto made = mixture->forward(x);
  return {made.output, made.aux_loss,
          at::scalar_tensor(made.num_dropped, at::kLong)};
}

void add_to(MixtureTally& tally, const std::vector<at::Tensor>& made,
            std::int64_t num_choices) {
  if (made.size() == 1) return;
  tally.aux_loss =
      tally.aux_loss.defined() ? tally.aux_loss + made[1] : made[1];
  tally.num_mixtures += 1;
  tally.num_choices += num_choices;
  tally.num_dropped += made[2].item<std::int64_t>();
}

}  // namespace nfold::train
