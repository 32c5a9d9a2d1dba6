// File: sharded_optimizer.h
//
// Updates the owned ranges of units from their gradients. Two kinds: our
// fused loops, and an adapter for any element-wise torch::optim optimizer.
//
// An optimizer only ever sees flat pieces of owned ranges, one piece for each
// run of neighbouring parameters with equal settings, so it must be
// element-wise to give the result of unsharded training.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nfold/config.h"
#include "param/sharded_unit.h"

namespace nfold {

// Settings of one parameter group, as they are now; schedules change them.
// NaN stands for "as the user's own optimizer has it" and is replaced when
// the optimizer is made.
struct OptimGroup {
  double lr = 0;
  double weight_decay = 0;
  // Replaces the first beta (or the momentum) when a schedule sets it.
  std::optional<double> momentum;
};

// A piece of a unit's owned range with one parameter group.
struct OwnedSegment {
  std::size_t unit = 0;
  std::size_t group = 0;
  std::int64_t begin = 0;  // from the start of the owned range
  std::int64_t numel = 0;

  bool operator==(const OwnedSegment&) const = default;
};

// group_of_param: for each parameter of the unit, its group. Neighbours with
// the same group become one segment, the residue between them included (it
// stays zero under every optimizer here). Pure.
std::vector<OwnedSegment> plan_segments(
    std::size_t unit, const UnitLayout& layout, const FlatRange& owned,
    const std::vector<std::size_t>& group_of_param);

class ShardedOptimizer {
 public:
  virtual ~ShardedOptimizer() = default;

  // Updates master weights and low-precision copies of all units. Gradients
  // are multiplied with grad_scale first. Calls on_updated(unit) as soon as a
  // unit is done, so that it can travel while the next is updated.
  virtual void step(float grad_scale,
                    const std::function<void(std::size_t)>& on_updated) = 0;

  // Names as torch.optim uses them: "exp_avg", "momentum_buffer", ...
  virtual std::vector<std::string> state_names() const = 0;
  // Flat [owned numel] in the dtype of the state, zero before the first step
  // and on residue; may be a copy. Raises c10::ValueError with the names there
  // are for an unknown one.
  virtual at::Tensor state(std::size_t unit, const std::string& name) = 0;
  // Writes elements [begin, begin + values.numel()) of that.
  virtual void set_state(std::size_t unit, const std::string& name,
                         std::int64_t begin, const at::Tensor& values) = 0;
  virtual std::int64_t state_bytes() const = 0;
  // State tensors held for each element, for memory estimates.
  virtual int num_states() const = 0;

  std::vector<OptimGroup>& groups() { return groups_; }
  const std::vector<OptimGroup>& groups() const { return groups_; }

 protected:
  void check_state_name(const std::string& name) const;

  std::vector<OptimGroup> groups_;
};

// What both kinds are made from.
struct ShardedOptimizerInput {
  std::vector<ShardedUnit*> units;     // trained ones
  std::vector<OwnedSegment> segments;  // of all units, in order
  std::vector<OptimGroup> groups;
};

// The fused optimizer of config.type, or torch::optim's for types we have no
// loop for. Raises c10::ValueError with the types there are for an unknown
// one.
std::unique_ptr<ShardedOptimizer> make_sharded_optimizer(
    const OptimizerConfig& config, ShardedOptimizerInput input);

using TorchOptimizerFactory =
    std::function<std::unique_ptr<torch::optim::Optimizer>(
        std::vector<torch::optim::OptimizerParamGroup>)>;

// An optimizer of the user's own.
std::unique_ptr<ShardedOptimizer> make_torch_optimizer(
    const TorchOptimizerFactory& factory, ShardedOptimizerInput input);

}  // namespace nfold
