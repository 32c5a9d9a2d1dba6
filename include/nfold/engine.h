// File: nfold/engine.h
//
// Trains any torch::nn module with its state sharded over a mesh.
//
//   nfold::Engine engine(model, mesh, config);
//   for (auto& batch : loader) {
//     auto loss = model->forward(batch.tokens, batch.targets);
//     engine.backward(loss);
//     nfold::StepReport report = engine.step();
//   }
//
// The module is changed in place: its parameters become views of flat
// storages in the configured dtype. It is used as before; parameters that are
// added later are not trained. At stage 3 the storages have memory only around
// the operators that use them; writing and raw access take a scope of
// nfold/gather.h, and without unshard_model the parameters are left without
// memory when the engine is destroyed.
//
// Every rank of the mesh must construct the engine with the same model and call
// backward and step equally often. The mesh must outlive the engine and stay
// where it is. At stage 3 all ranks
// must also use parameters in the same order, in forward passes of evaluation
// too. Not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nfold/config.h"
#include "nfold/mesh.h"
#include "nfold/report.h"

namespace nfold {

// Parameters that share optimizer settings. An empty optional takes the value
// of config.optimizer.
struct ParamGroup {
  std::vector<at::Tensor> params;
  std::optional<double> lr;
  std::optional<double> weight_decay;
};

// Makes the user's own torch::optim optimizer over the flat shards, one
// torch parameter group for each ParamGroup, in order. Only element-wise
// optimizers give the result of unsharded training.
using OptimizerFactory = std::function<std::unique_ptr<torch::optim::Optimizer>(
    std::vector<torch::optim::OptimizerParamGroup>)>;

struct EngineOptions {
  // Empty: one group with every trainable parameter.
  std::vector<ParamGroup> param_groups;
  // Empty: config.optimizer, or a run without optimizer if there is none.
  OptimizerFactory optimizer_factory;
};

class Engine {
 public:
  Engine(std::shared_ptr<torch::nn::Module> module, Mesh& mesh,
         const Config& config, EngineOptions options = {});
  template <typename ModuleImpl>
  Engine(const torch::nn::ModuleHolder<ModuleImpl>& model, Mesh& mesh,
         const Config& config, EngineOptions options = {})
      : Engine(std::shared_ptr<torch::nn::Module>(model.ptr()), mesh, config,
               std::move(options)) {}
  ~Engine();

  // Computes gradients of a one-element loss and reduces them into the owned
  // shards. May be called any number of times before step().
  void backward(const at::Tensor& loss);

  // With gradient_accumulation_steps > 1, counts a micro step until the
  // boundary; at the boundary reduces, clips and updates.
  StepReport step();

  // Drops what backward accumulated.
  void zero_grad();

  bool is_boundary() const;
  std::int64_t steps() const;
  double loss_scale() const;
  // Of every parameter group. With a scheduler, set_lr lasts until the next
  // step.
  std::vector<double> lr() const;
  void set_lr(double lr);
  MemoryReport memory() const;
  // Bytes one unsharded process with the same settings would hold.
  MemoryReport unsharded_memory() const;
  const Config& config() const;

  // Makes the module a plain one again: every parameter whole, with memory of
  // its own, in the dtype it has now; ties stay ties. The engine is spent
  // afterwards: backward and step raise c10::ValueError. Collective. Needs the
  // memory of the whole model on every rank.
  void unshard_model();

  class Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace nfold
