#include "nfold/init.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include "checkpoint/match_weights.h"
#include "comm/launcher_environment.h"
#include "engine/initialized_modules.h"
#include "engine/mesh_groups.h"
#include "engine/shard_filler.h"
#include "nfold/host_memory.h"
#include "param/deferred_construction.h"
#include "param/model_agreement.h"

namespace nfold {
namespace {

// A mesh of one rank although the job has several: somebody made the world
// without the launcher's variables, and every process would hold the model.
void check_not_alone(const Mesh& mesh) {
  if (mesh.world_size() > 1) return;
  const auto variables = process_environment();
  const auto found = variables.find("WORLD_SIZE");
  if (found == variables.end()) return;
  const auto ranks = std::strtol(found->second.c_str(), nullptr, 10);
  TORCH_CHECK_VALUE(ranks <= 1, "nfold::init: the environment speaks of ",
                    ranks,
                    " ranks (WORLD_SIZE), but the mesh has one, so this "
                    "process would hold the whole model. Make the world with "
                    "World::from_environment() before init.");
}

ConstructionOptions construction_options(const InitOptions& options,
                                         Group& group) {
  TORCH_CHECK_VALUE(!options.dtype || c10::isFloatingType(*options.dtype),
                    "nfold::init: expected a floating-point dtype but found ",
                    *options.dtype);
  ConstructionOptions result;
  result.enabled = options.enabled;
  result.dtype = options.dtype;
  result.group = &group;
  return result;
}

std::vector<WeightTarget> targets_of(const std::vector<ParamOrigin>& origins,
                                     const std::vector<NamedTensor>& buffers) {
  std::vector<WeightTarget> targets;
  targets.reserve(origins.size() + buffers.size());
  for (const auto& origin : origins) {
    targets.push_back({origin.names, origin.tensor});
  }
  for (const auto& buffer : buffers) {
    targets.push_back({{buffer.name}, buffer.tensor});
  }
  return targets;
}

}  // namespace

class InitScope::Impl {
 public:
  Impl(Mesh& mesh, const Config& config, InitOptions options)
      : mesh_(mesh),
        group_(mesh.state_group()),
        config_(config),
        options_(std::move(options)),
        scope_(construction_options(options_, group_)) {}

  void finish(const std::shared_ptr<torch::nn::Module>& module) {
    auto tape = scope_.finish();
    if (!tape) return;
    auto params = collect_params(*module);
    check_same_structure(groups_on(mesh_), *module, params);
    const auto origins = origins_of(params);
    const auto buffers = buffers_of(*module);
    std::vector<at::Tensor> sources;
    if (!options_.weights.empty()) {
      sources = match_weights(targets_of(origins, buffers), options_.weights);
    }

    ShardedModel model(std::move(params), mesh_, config_, InitialValues::kZero);
    ShardFiller filler(mesh_, model, origins);
    if (sources.empty()) {
      warn_of_differing(
          filler.fill_from_tape(std::move(tape), options_.from_rank_0));
    } else {
      filler.fill_from_file(std::move(tape), sources);
      for (std::size_t i = 0; i < buffers.size(); ++i) {
        buffers[i].tensor.copy_(sources[origins.size() + i]);
      }
    }
    for (auto* unit : model.all()) unit->rest_shard();
    warn_of_differing(agree_on_values(groups_on(mesh_), buffers));
    convert_buffers(*module, config_);
    keep_initialized(module, mesh_, std::move(model));
  }

 private:
  Mesh& mesh_;
  Group& group_;
  Config config_;
  InitOptions options_;
  ConstructionScope scope_;
};

InitScope::InitScope(Mesh& mesh, const Config& config, InitOptions options) {
  config.validate();
  if (options.enabled) check_not_alone(mesh);
  if (config.cache_host_memory) enable_host_cache();
  impl_ = std::make_unique<Impl>(mesh, config, std::move(options));
}

InitScope::~InitScope() = default;

void InitScope::finish(const std::shared_ptr<torch::nn::Module>& module) {
  TORCH_CHECK_VALUE(
      module != nullptr,
      "nfold::init: expected a module but found an empty pointer");
  impl_->finish(module);
}

}  // namespace nfold
