// File: nfold/dummy_optim.h
//
// An optimizer that does nothing: for programs that must hand one over and only
// want a model's parameters sharded, to evaluate it or to update it themselves.
//
//   nfold::EngineOptions options;
//   options.optimizer_factory = [](auto groups) {
//     return std::make_unique<nfold::DummyOptim>(std::move(groups));
//   };
//   nfold::Engine engine(model, mesh, config, options);   // stage 3
//
// As in DeepSpeed, stages 0 to 2 refuse it: there it would keep optimizer
// memory for nothing. To run without an optimizer at any stage, name none.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/optim/optimizer.h>

#include <vector>

namespace nfold {

class DummyOptim : public torch::optim::Optimizer {
 public:
  // One group with all parameters.
  explicit DummyOptim(std::vector<at::Tensor> params);
  // The groups that an Engine gives its factory.
  explicit DummyOptim(
      const std::vector<torch::optim::OptimizerParamGroup>& groups);

  // Evaluates the closure, if there is one, and returns its loss.
  at::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace nfold
