#include "optim/loss_scaler.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace nfold {
namespace {

void check_scale(const char* name, double scale) {
  TORCH_CHECK_VALUE(std::isfinite(scale) && scale > 0, "loss scale: ", name,
                    ": expected a finite number above 0 but found ", scale);
}

}  // namespace

LossScaler::LossScaler(double scale) : is_dynamic_(false) {
  check_scale("scale", scale);
  state_.scale = scale;
}

LossScaler::LossScaler(const DynamicLossScale& options)
    : is_dynamic_(true), options_(options) {
  check_scale("initial_scale", options.initial_scale);
  check_scale("min_scale", options.min_scale);
  TORCH_CHECK_VALUE(options.window >= 1,
                    "loss scale: window: expected at least 1 but found ",
                    options.window);
  TORCH_CHECK_VALUE(options.hysteresis >= 1,
                    "loss scale: hysteresis: expected at least 1 but found ",
                    options.hysteresis);
  state_.scale = options.initial_scale;
  state_.hysteresis_left = options.hysteresis;
}

void LossScaler::halve() {
  if (options_.hysteresis > 1 && state_.hysteresis_left > 1) {
    --state_.hysteresis_left;
    return;
  }
  TORCH_CHECK_VALUE(
      state_.scale > options_.min_scale || !options_.raises_at_min,
      "gradients are not finite although the loss scale is already at its "
      "minimum of ",
      options_.min_scale, " (update ", state_.num_updates + 1,
      "), so a smaller scale cannot be the remedy. Look at the loss of this "
      "step, the learning rate, the gradient norm of the steps before it, and "
      "operations that divide or take roots and logarithms; or lower "
      "fp16.min_loss_scale, or train in bf16.");
  state_.scale = std::max(state_.scale / 2, options_.min_scale);
}

void LossScaler::update(bool is_overflow) {
  if (is_dynamic_) {
    if (is_overflow) {
      halve();
      state_.last_overflow = state_.num_updates;
    } else {
      if (options_.consecutive_hysteresis) {
        state_.hysteresis_left = options_.hysteresis;
      }
      const std::int64_t num_clean =
          state_.num_updates - state_.last_overflow - 1;
      if (num_clean > 0 && num_clean % options_.window == 0) {
        state_.hysteresis_left = options_.hysteresis;
        state_.scale *= 2;
      }
    }
  }
  ++state_.num_updates;
}

void LossScaler::override_scale(double scale) {
  check_scale("scale", scale);
  is_dynamic_ = false;
  state_.scale = scale;
}

void LossScaler::set_state(const LossScalerState& state) {
  check_scale("scale", state.scale);
  state_ = state;
}

LossScaler make_loss_scaler(const Config& config) {
  const Fp16Config& fp16 = config.fp16;
  if (!fp16.enabled) return LossScaler(1.0);
  if (fp16.loss_scale != 0) return LossScaler(fp16.loss_scale);
  return LossScaler(DynamicLossScale{
      .initial_scale =
          std::ldexp(1.0, static_cast<int>(fp16.initial_scale_power)),
      .window = fp16.loss_scale_window,
      .min_scale = fp16.min_loss_scale,
      .hysteresis = fp16.hysteresis,
      .consecutive_hysteresis = fp16.consecutive_hysteresis});
}

}  // namespace nfold
