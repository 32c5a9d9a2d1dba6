// File: loss_scaler.h
//
// The factor that the loss is multiplied with, so that small fp16 gradients do
// not vanish: constant, or halved after overflows and doubled after a window of
// clean steps.
//
//   LossScaler scaler = make_loss_scaler(config);
//   backward(loss * scaler.scale());
//   scaler.update(/*is_overflow=*/!gradients_are_finite);
//
// Divide gradients by the scale that their loss was multiplied with, not by the
// one after update(): in a step that doubles it they would come out halved.
// Pure value, the same on all ranks when updated with the same flags. Not
// thread-safe.
#pragma once

#include <cstdint>

#include "nfold/config.h"

namespace nfold {

struct DynamicLossScale {
  double initial_scale = 65536;
  // Clean steps since the last overflow after which the scale doubles.
  std::int64_t window = 1000;
  double min_scale = 1;
  // Overflows to absorb, counting the one that halves.
  std::int64_t hysteresis = 2;
  // True: a clean step refills the hysteresis; false: only a doubling does.
  bool consecutive_hysteresis = false;
  // False: an overflow at min_scale is skipped like any other.
  bool raises_at_min = true;
};

// What a checkpoint keeps.
struct LossScalerState {
  double scale = 1;
  std::int64_t num_updates = 0;
  std::int64_t last_overflow = -1;  // index of that update, -1: none yet
  std::int64_t hysteresis_left = 1;

  bool operator==(const LossScalerState&) const = default;
};

class LossScaler {
 public:
  // Constant. Raises c10::ValueError unless scale is finite and positive.
  explicit LossScaler(double scale = 1);
  // Dynamic. Raises c10::ValueError for an option out of its range.
  explicit LossScaler(const DynamicLossScale& options);

  double scale() const { return state_.scale; }
  bool is_dynamic() const { return is_dynamic_; }

  // Counts one optimizer step, tried or done. Raises c10::ValueError, and
  // changes nothing, when the scale cannot be halved any more.
  void update(bool is_overflow);

  // From now on constant.
  void override_scale(double scale);

  const LossScalerState& state() const { return state_; }
  void set_state(const LossScalerState& state);

 private:
  void halve();

  bool is_dynamic_;
  DynamicLossScale options_;
  LossScalerState state_;
};

// Dynamic for fp16 with loss_scale 0, constant for fp16 with another, 1 for all
// other dtypes.
LossScaler make_loss_scaler(const Config& config);

}  // namespace nfold
