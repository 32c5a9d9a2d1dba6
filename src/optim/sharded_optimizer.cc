#include "optim/sharded_optimizer.h"

#include <c10/util/Exception.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>

#include <algorithm>

#include "optim/fused_optimizer.h"
#include "optim/torch_optimizer.h"

namespace nfold {
namespace {

// The types without a loop of ours, and those the user wants from torch.
std::unique_ptr<torch::optim::Optimizer> make_torch(
    const OptimizerConfig& config,
    std::vector<torch::optim::OptimizerParamGroup> groups) {
  using namespace torch::optim;
  const auto& params = config.params;
  const auto betas = std::tuple{params.betas[0], params.betas[1]};
  switch (config.type) {
    case OptimizerType::kRmsProp:
      return std::make_unique<RMSprop>(std::move(groups),
                                       RMSpropOptions(params.lr)
                                           .alpha(params.alpha)
                                           .eps(params.eps)
                                           .weight_decay(params.weight_decay)
                                           .momentum(params.momentum)
                                           .centered(params.centered));
    case OptimizerType::kAdam:
      if (!params.adam_w_mode) {
        return std::make_unique<Adam>(std::move(groups),
                                      AdamOptions(params.lr)
                                          .betas(betas)
                                          .eps(params.eps)
                                          .weight_decay(params.weight_decay)
                                          .amsgrad(params.amsgrad));
      }
      [[fallthrough]];
    default:
      return std::make_unique<AdamW>(std::move(groups),
                                     AdamWOptions(params.lr)
                                         .betas(betas)
                                         .eps(params.eps)
                                         .weight_decay(params.weight_decay)
                                         .amsgrad(params.amsgrad));
  }
}

}  // namespace

std::vector<OwnedSegment> plan_segments(
    std::size_t unit, const UnitLayout& layout, const FlatRange& owned,
    const std::vector<std::size_t>& group_of_param) {
  std::vector<OwnedSegment> segments;
  for (const auto& fragment : fragments_in(layout, owned)) {
    const auto group = group_of_param[fragment.param];
    const auto end = fragment.range_begin + fragment.numel;
    if (!segments.empty() && segments.back().group == group) {
      segments.back().numel = end - segments.back().begin;
    } else {
      segments.push_back({unit, group, fragment.range_begin, fragment.numel});
    }
  }
  return segments;
}

void ShardedOptimizer::check_state_name(const std::string& name) const {
  const auto names = state_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  std::string known;
  for (const auto& each : names) known += (known.empty() ? "" : ", ") + each;
  TORCH_CHECK_VALUE(false, "optimizer state \"", name,
                    "\" does not exist; this optimizer has ",
                    known.empty() ? "none before its first step" : known);
}

std::unique_ptr<ShardedOptimizer> make_sharded_optimizer(
    const OptimizerConfig& config, ShardedOptimizerInput input) {
  const bool wants_torch = config.params.torch_adam || config.params.amsgrad;
  if (FusedOptimizer::has_loop_for(config.type) && !wants_torch) {
    return std::make_unique<FusedOptimizer>(config, std::move(input));
  }
  return make_torch_optimizer(
      [&config](std::vector<torch::optim::OptimizerParamGroup> groups) {
        return make_torch(config, std::move(groups));
      },
      std::move(input));
}

std::unique_ptr<ShardedOptimizer> make_torch_optimizer(
    const TorchOptimizerFactory& factory, ShardedOptimizerInput input) {
  return std::make_unique<TorchOptimizer>(factory, std::move(input));
}

}  // namespace nfold
