// File: fused_optimizer.h
//
// AdamW, Adam, SGD, Adagrad and Lion as one pass over each segment: scale the
// gradient, update master weights and state, write the low-precision copy.
#pragma once

#include "optim/sharded_optimizer.h"

namespace nfold {

class FusedOptimizer final : public ShardedOptimizer {
 public:
  // Raises c10::ValueError for a type there is no loop for.
  FusedOptimizer(const OptimizerConfig& config, ShardedOptimizerInput input);

  static bool has_loop_for(OptimizerType type);

  void step(float grad_scale,
            const std::function<void(std::size_t)>& on_updated) override;
  std::vector<std::string> state_names() const override;
  at::Tensor state(std::size_t unit, const std::string& name) override;
  void set_state(std::size_t unit, const std::string& name, std::int64_t begin,
                 const at::Tensor& values) override;
  std::int64_t state_bytes() const override;
  int num_states() const override;

 private:
  void update(const OwnedSegment& segment, float grad_scale);
  const at::Tensor& live_state(std::size_t unit, const std::string& name) const;

  OptimizerConfig config_;
  std::vector<ShardedUnit*> units_;
  std::vector<OwnedSegment> segments_;
  std::vector<std::string> names_;
  // [unit][name], each [owned numel].
  std::vector<std::vector<at::Tensor>> states_;
  std::int64_t steps_ = 0;  // updates done; skipped steps do not count
};

}  // namespace nfold
