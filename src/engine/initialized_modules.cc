#include "engine/initialized_modules.h"

#include <c10/util/Exception.h>

#include <list>
#include <mutex>

#include "fetch/dispatch_interceptor.h"
#include "fetch/fetcher.h"

namespace nfold {
namespace {

struct Initialized {
  Initialized(const std::shared_ptr<torch::nn::Module>& owner, Mesh& mesh,
              ShardedModel sharded)
      : module(owner),
        group(&mesh.state_group()),
        model(std::move(sharded)),
        fetcher(*group, model.all(), FetcherOptions{}, dispatch_interceptor()) {
    fetcher.set_position("before the engine");
  }

  std::weak_ptr<torch::nn::Module> module;
  Group* group;
  ShardedModel model;
  Fetcher fetcher;
};

struct Registry {
  std::mutex mutex;
  std::list<std::unique_ptr<Initialized>> modules;

  void forget_destroyed() {
    modules.remove_if([](const auto& each) { return each->module.expired(); });
  }
};

Registry& registry() {
  // Never destroyed: parameters may outlive static objects.
  static auto* instance = new Registry;
  return *instance;
}

void check_unsharded(const torch::nn::Module& module) {
  for (const auto& param : module.named_parameters()) {
    if (!param.value().defined()) continue;
    const auto watched = dispatch_interceptor().find(param.value());
    TORCH_CHECK_VALUE(
        watched.unit == nullptr,
        watched.handler ? watched.handler->where() : "", ": ", param.key(),
        " is sharded already, by another engine or as part of a module that "
        "nfold::init returned. A parameter belongs to one engine; pass the "
        "module that nfold::init returned, or call unshard_model on the other "
        "engine first.");
  }
}

}  // namespace

void keep_initialized(const std::shared_ptr<torch::nn::Module>& module,
                      Mesh& mesh, ShardedModel model) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  all.forget_destroyed();
  all.modules.push_back(
      std::make_unique<Initialized>(module, mesh, std::move(model)));
}

std::optional<ShardedModel> take_initialized(
    const std::shared_ptr<torch::nn::Module>& module, const Mesh& mesh,
    const Config& config) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  all.forget_destroyed();
  const auto found = std::find_if(
      all.modules.begin(), all.modules.end(),
      [&](const auto& each) { return each->module.lock() == module; });
  if (found == all.modules.end()) {
    check_unsharded(*module);
    return std::nullopt;
  }
  auto& initialized = **found;
  TORCH_CHECK_VALUE(initialized.group == &mesh.state_group(), "[rank ",
                    mesh.rank(),
                    "] nfold::init sharded the module over the group ",
                    initialized.group->name(),
                    " of another mesh, but the "
                    "engine is made with another one; use the same mesh");
  initialized.model.check_made_for(*module, mesh, config);
  initialized.fetcher.check_idle("Engine");
  initialized.fetcher.release_all();
  initialized.fetcher.stop_watching();
  auto model = std::move(initialized.model);
  all.modules.erase(found);
  return model;
}

}  // namespace nfold
