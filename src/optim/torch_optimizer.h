// File: torch_optimizer.h
//
// Runs a torch::optim optimizer over the segments of owned ranges: each
// segment is one 1-D parameter, a view of master weights. Its gradient is a
// view of the unit's gradient where dtypes agree.
#pragma once

#include "optim/sharded_optimizer.h"

namespace nfold {

class TorchOptimizer final : public ShardedOptimizer {
 public:
  TorchOptimizer(const TorchOptimizerFactory& factory,
                 ShardedOptimizerInput input);

  void step(float grad_scale,
            const std::function<void(std::size_t)>& on_updated) override;
  std::vector<std::string> state_names() const override;
  at::Tensor state(std::size_t unit, const std::string& name) override;
  void set_state(std::size_t unit, const std::string& name, std::int64_t begin,
                 const at::Tensor& values) override;
  std::int64_t state_bytes() const override;
  int num_states() const override;

 private:
  struct Piece {
    OwnedSegment segment;
    at::Tensor param;
  };

  void read_groups();
  void set_grads(float grad_scale);
  void apply_groups();
  std::vector<std::pair<std::string, at::Tensor>> states_of(
      const at::Tensor& param) const;

  std::vector<ShardedUnit*> units_;
  std::vector<Piece> pieces_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

}  // namespace nfold
