// File: engine_impl.h
//
// The engine wires layers together and keeps count of where training stands;
// every decision and every byte moved belongs to a layer below.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/sharded_model.h"
#include "engine/stage_policy.h"
#include "fetch/fetcher.h"
#include "grad/grad_reducer.h"
#include "nfold/engine.h"
#include "optim/loss_scaler.h"
#include "optim/lr_schedule.h"
#include "optim/sharded_optimizer.h"

namespace nfold {

class Engine::Impl {
 public:
  Impl(std::shared_ptr<torch::nn::Module> module, Mesh& mesh,
       const Config& config, EngineOptions options);

  void backward(const at::Tensor& loss);
  StepReport step();
  void zero_grad();
  void unshard_model();

  bool is_boundary() const;
  MemoryReport memory() const;
  MemoryReport unsharded_memory() const;

  // Of all ranks that train the model, or the same part of its layers.
  Group& group() { return group_; }
  // Makes gradients those of all replicas, if they are not yet. Collective.
  void reduce_over_replicas();
  ShardedModel& model() { return model_; }
  // Null in a run without optimizer.
  ShardedOptimizer* optimizer() { return optimizer_.get(); }
  const Config& config() const { return config_; }
  std::int64_t steps() const { return steps_; }
  double loss_scale() const { return scaler_.scale(); }
  // backward ran since the last step or zero_grad, and what it left has been
  // reduced over ranks.
  bool has_gradients() const {
    return micro_steps_ > 0 && (!policy_.reduces_at_boundary || is_boundary());
  }
  // Turns accumulated gradients into the mean over ranks, unscaled.
  double grad_scale() const { return sum_scale_ / backward_scale_; }

  // Raises c10::ValueError while gather scopes are open.
  void check_idle(const char* operation) const {
    fetcher_.check_idle(operation);
  }
  // Between these two the unit's owned values may change; then every use of it
  // sees them. Collective; needs check_idle.
  void begin_update(ShardedUnit& unit);
  void publish(ShardedUnit& unit);

 private:
  using Clock = std::chrono::steady_clock;

  struct Timers {
    Clock::time_point last_end = Clock::now();
    double forward_ms = 0;
    double backward_ms = 0;
    double comm_wait_ms = 0;
  };

  void check_not_spent(const char* operation) const;
  void run_backward(const at::Tensor& loss, const at::Tensor& seed);
  void check_loss(const at::Tensor& loss) const;
  // "step 12, micro step 0", and the same with the rank for errors.
  std::string position() const;
  std::string where() const;
  // For errors of what comes next, in any group of the mesh: a model's layers
  // may communicate by themselves.
  void tell_position(const std::string& more = "");
  void begin_report(StepReport& report) const;
  void finish_report(StepReport& report);
  // True when the gradients are fit for an update; fills norm and findings.
  bool measure_gradients(StepReport& report);
  void update(double grad_scale);
  void leave_grads_to_one_replica();
  // For errors of what the groups that hold shards do next.
  void announce(const std::string& what);
  CommCounts comm_counts() const;
  std::int64_t params_bytes() const;
  std::int64_t held_grads_bytes() const;
  std::string describe_non_finite();

  std::shared_ptr<torch::nn::Module> module_;
  Mesh& mesh_;
  Group& group_;
  Config config_;
  StagePolicy policy_;
  std::int64_t accumulation_steps_ = 1;
  ShardedModel model_;
  Fetcher fetcher_;
  GradReducer reducer_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  LossScaler scaler_;
  double sum_scale_;  // turns what units accumulate into means over ranks
  std::optional<LrSchedule> schedule_;

  bool is_reduced_over_replicas_ = false;
  bool is_spent_ = false;  // unshard_model took the parameters away
  std::int64_t steps_ = 0;
  std::int64_t updates_ = 0;      // steps that were not skipped
  std::int64_t micro_steps_ = 0;  // backward calls since the last update
  // Loss scale that the gradients at hand carry; the scaler may move on.
  double backward_scale_ = 1;
  std::int64_t grads_bytes_ = 0;  // largest so far
  Timers timers_;
  CommCounts comm_at_last_step_{};
};

}  // namespace nfold
