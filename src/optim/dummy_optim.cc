#include "nfold/dummy_optim.h"

#include <memory>
#include <utility>

namespace nfold {
namespace {

// A rate that nothing uses, for loops that log it.
class NoOptions : public torch::optim::OptimizerOptions {
 public:
  std::unique_ptr<OptimizerOptions> clone() const override {
    return std::make_unique<NoOptions>();
  }
  double get_lr() const override { return 0; }
  void set_lr(const double /*lr*/) override {}
};

std::vector<torch::optim::OptimizerParamGroup> one_group(
    std::vector<at::Tensor> params) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(std::move(params));
  return groups;
}

}  // namespace

DummyOptim::DummyOptim(std::vector<at::Tensor> params)
    : DummyOptim(one_group(std::move(params))) {}

DummyOptim::DummyOptim(
    const std::vector<torch::optim::OptimizerParamGroup>& groups)
    : Optimizer(groups, std::make_unique<NoOptions>()) {}

at::Tensor DummyOptim::step(LossClosure closure) {
  return closure ? closure() : at::Tensor();
}

}  // namespace nfold
