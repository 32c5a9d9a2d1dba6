#include "train/whole_weights.h"

#include <ATen/Functions.h>

#include <cstdint>
#include <string>

#include "nfold/collectives.h"
#include "nfold/moe.h"
#include "nfold/tensor_parallel.h"

namespace nfold::train {
namespace {

// One mixture whose experts ranks share out.
struct SharedExperts {
  std::string prefix;  // of its experts: "transformer.h.1.mlp.experts."
  Group* group;
  std::int64_t num_local;
};

std::vector<SharedExperts> shared_experts_of(const torch::nn::Module& model) {
  std::vector<SharedExperts> result;
  for (const auto& item : model.named_modules()) {
    const auto* mixture =
        dynamic_cast<const MixtureOfExpertsImpl*>(item.value().get());
    if (mixture == nullptr) continue;
    const auto& options = mixture->options();
    if (options.expert_group == nullptr) continue;
    result.push_back({item.key() + (item.key().empty() ? "" : ".") + "experts.",
                      options.expert_group,
                      options.num_experts / options.expert_group->size()});
  }
  return result;
}

// The parameter of this rank's expert, and of the experts with the same place
// on the other ranks.
void add_expert_param(const SharedExperts& experts, const std::string& name,
                      const at::Tensor& param, NamedTensors* weights) {
  const std::size_t end = name.find('.', experts.prefix.size());
  const std::int64_t index =
      std::stoll(name.substr(experts.prefix.size(), end)) % experts.num_local;
  Group& group = *experts.group;
  at::Tensor all = at::empty({group.size() * param.numel()},
                             param.options().requires_grad(false));
  all_gather(group, all, param.detach().contiguous().flatten()).wait();
  if (group.rank() != 0) {
    weights->emplace_back(name, param);
    return;
  }
  const auto parts = all.chunk(group.size());
  for (int rank = 0; rank < group.size(); ++rank) {
    weights->emplace_back(
        experts.prefix + std::to_string(rank * experts.num_local + index) +
            name.substr(end),
        parts[static_cast<std::size_t>(rank)].view(param.sizes()));
  }
}

}  // namespace

NamedTensors whole_weights(const torch::nn::Module& model,
                           const ModelGroups& groups) {
  const auto mixtures = shared_experts_of(model);
  NamedTensors weights;
  for (const auto& item : model.named_parameters()) {
    at::Tensor value = item.value();
    const auto split = split_of(model, item.key());
    if (groups.tensor && split) value = whole_of(groups.tensor, value, *split);
    const SharedExperts* owner = nullptr;
    for (const auto& experts : mixtures) {
      if (item.key().starts_with(experts.prefix)) owner = &experts;
    }
    if (owner == nullptr) {
      weights.emplace_back(item.key(), value);
    } else {
      add_expert_param(*owner, item.key(), value, &weights);
    }
  }
  return weights;
}

}  // namespace nfold::train
