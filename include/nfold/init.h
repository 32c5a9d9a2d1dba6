// File: nfold/init.h
//
// Builds a module of any size straight into shards.
//
//   auto model = nfold::init(mesh, config, [] { return Gpt(options); });
//   nfold::Engine engine(model, mesh, config);
//
// The function runs as always, but what it makes has no memory yet. Then the
// parameters get their values one by one, and each rank keeps its shard of
// each. A rank never holds more than its shards and what the values of one
// parameter take while they are computed; without init every rank holds the
// whole model before an Engine can shard it. The values are bit for bit those
// of the same code outside of init, and so is the state of torch's random
// generators afterwards.
//
// What the function may do is any code that builds modules, with the limits of
// src/param/deferred_construction.h: among them that elements of parameters
// are read and written by operators, or through pointers inside of a
// GatheredParameters. In it, GatheredParameters gives the parameters memory
// until init returns.
//
// All ranks end with the same values. Every rank computes them; where they
// differ, as with another seed on each rank, rank 0's are taken, with a
// warning. Between init and the Engine, operators and GatheredParameters work
// on the parameters as they do with an Engine.
//
// Source of the idea: deepspeed.zero.Init.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "nfold/config.h"
#include "nfold/mesh.h"

namespace nfold {

struct InitOptions {
  // false: the function runs as if it stood alone, and an Engine shards what
  // it returns.
  bool enabled = true;
  // Only rank 0 computes the values; the others get theirs from it. For
  // functions that do different things on different ranks.
  bool from_rank_0 = false;
  // A safetensors file that the values come from, see load_weights in
  // nfold/checkpoint.h. Each rank reads its shards only. Empty: none.
  std::string weights{};
  // Of floating-point tensors that the function makes, whatever it asks for.
  // Empty: as it asks. (Engine stores them in the configured dtype anyway, and
  // keeps the unrounded values as master weights.)
  std::optional<c10::ScalarType> dtype{};
};

// The parts of init(), for code that is no single function.
//
//   nfold::InitScope scope(mesh, config);
//   Gpt model(options);
//   scope.finish(model.ptr());
//
// Scopes belong to their thread and may be nested: the outermost one decides,
// the others do nothing. Without finish(), or when an exception passes, what
// was built stays without values and the random generators are as before.
class InitScope {
 public:
  // Raises c10::ValueError for a contradictory configuration, a dtype that is
  // no floating-point one, and where the mesh has one rank although the
  // environment speaks of several (WORLD_SIZE): each would hold everything.
  InitScope(Mesh& mesh, const Config& config, InitOptions options = {});
  ~InitScope();
  InitScope(const InitScope&) = delete;
  InitScope& operator=(const InitScope&) = delete;

  // Ends the scope and shards the module. Collective over the data-parallel
  // group. Raises c10::ValueError, on every rank, when the ranks built
  // different modules, and what the function's operators raise.
  void finish(const std::shared_ptr<torch::nn::Module>& module);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

namespace detail {

template <typename ModuleImpl>
std::shared_ptr<torch::nn::Module> module_of(
    const torch::nn::ModuleHolder<ModuleImpl>& model) {
  return model.ptr();
}

template <typename ModuleImpl>
std::shared_ptr<torch::nn::Module> module_of(
    const std::shared_ptr<ModuleImpl>& model) {
  return model;
}

}  // namespace detail

// Calls `build` and returns its result, a module in a ModuleHolder or a
// std::shared_ptr, sharded. Collective; raises what InitScope does.
template <typename Build>
auto init(Mesh& mesh, const Config& config, Build&& build,
          InitOptions options = {}) -> decltype(build()) {
  InitScope scope(mesh, config, std::move(options));
  auto model = std::forward<Build>(build)();
  scope.finish(detail::module_of(model));
  return model;
}

}  // namespace nfold
