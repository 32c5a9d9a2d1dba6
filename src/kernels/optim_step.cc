#include "kernels/optim_step.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/simd.h"
#include "kernels/tensor_check.h"

namespace nfold::kernels {
namespace {

// Elements updated at a time. What has to be converted is converted into
// buffers of this length, which stay in the first-level cache.
constexpr std::int64_t kUpdateBlockNumel = 512;
constexpr std::int64_t kUpdateGrainNumel = 32768;

// One operand of an update: a tensor of any floating dtype, seen block by block
// as the type that the arithmetic is done in.
struct Operand {
  std::byte* data = nullptr;
  std::int64_t element_bytes = 0;
  Element element = Element::kFloat;
  ScaledLoop load = nullptr;  // null: used where it is
  ScaledLoop store = nullptr;

  std::byte* at(std::int64_t index) const {
    return data + index * element_bytes;
  }
};

struct alignas(64) Buffer {
  std::byte bytes[kUpdateBlockNumel * sizeof(double)];
};

class Update {
 public:
  Update(const char* kernel, const OptimStep& tensors)
      : kernel_(kernel), grad_scale_(tensors.grad_scale) {
    const Element master =
        checked_float_element(tensors.master, kernel, "master");
    numel_ = tensors.master.numel();
    compute_ = master == Element::kDouble ? Element::kDouble : Element::kFloat;
    master_ = operand(tensors.master, "master");
    grad_ = operand(tensors.grad, "grad");
    if (grad_scale_ != 1 && grad_.load == nullptr) {
      grad_.load = loop(compute_, compute_);
    }
    if (tensors.low_precision.defined()) {
      low_precision_ = operand(tensors.low_precision, "low_precision");
      low_precision_.store = loop(compute_, low_precision_.element);
    }
  }

  void add_state(const at::Tensor& state, const char* argument) {
    states_[num_states_++] = operand(state, argument);
  }

  const OptimizerLoops& loops_of_type() const {
    return loops().optimizer[compute_ == Element::kDouble ? 1 : 0];
  }

  // update(weight, grad, state 0, state 1, numel), for each block.
  template <typename BlockUpdate>
  void run(const BlockUpdate& update) const {
    at::parallel_for(
        0, numel_, kUpdateGrainNumel,
        [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; i += kUpdateBlockNumel) {
            run_block(update, i, std::min(kUpdateBlockNumel, end - i));
          }
        });
  }

 private:
  static constexpr int kMaxStates = 2;

  static ScaledLoop loop(Element from, Element to) {
    return loops().scaled_cast[static_cast<int>(from)][static_cast<int>(to)];
  }

  Operand operand(const at::Tensor& tensor, const char* argument) const {
    Operand operand;
    operand.element = checked_float_element(tensor, kernel_, argument);
    check_numel(tensor, numel_, kernel_, argument);
    operand.data = static_cast<std::byte*>(tensor.data_ptr());
    operand.element_bytes = bytes_of(operand.element);
    if (operand.element != compute_) {
      operand.load = loop(operand.element, compute_);
      operand.store = loop(compute_, operand.element);
    }
    return operand;
  }

  static std::byte* loaded(const Operand& operand, Buffer& buffer,
                           std::int64_t index, std::int64_t numel,
                           double scale) {
    std::byte* source = operand.at(index);
    if (operand.load == nullptr) return source;
    operand.load(buffer.bytes, source, scale, numel);
    return buffer.bytes;
  }

  template <typename BlockUpdate>
  void run_block(const BlockUpdate& update, std::int64_t index,
                 std::int64_t numel) const {
    Buffer buffers[2 + kMaxStates];
    std::byte* weight = loaded(master_, buffers[0], index, numel, 1);
    const std::byte* grad =
        loaded(grad_, buffers[1], index, numel, grad_scale_);
    std::byte* states[kMaxStates] = {};
    for (int i = 0; i < num_states_; ++i) {
      states[i] = loaded(states_[i], buffers[2 + i], index, numel, 1);
    }
    update(weight, grad, states[0], states[1], numel);
    if (low_precision_.store != nullptr) {
      low_precision_.store(low_precision_.at(index), weight, 1, numel);
    }
    if (master_.store != nullptr) {
      master_.store(master_.at(index), weight, 1, numel);
    }
    for (int i = 0; i < num_states_; ++i) {
      if (states_[i].store != nullptr) {
        states_[i].store(states_[i].at(index), states[i], 1, numel);
      }
    }
  }

  const char* kernel_;
  double grad_scale_;
  std::int64_t numel_ = 0;
  Element compute_ = Element::kFloat;
  Operand master_;
  Operand grad_;
  Operand low_precision_;
  Operand states_[kMaxStates];
  int num_states_ = 0;
};

void check_step(const char* kernel, std::int64_t step) {
  TORCH_CHECK_VALUE(step >= 1, kernel,
                    ": step: expected a count from 1 but found ", step);
}

void check_non_negative(const char* kernel, const char* name, double value) {
  TORCH_CHECK_VALUE(value >= 0 && std::isfinite(value), kernel, ": ", name,
                    ": expected a number that is not negative but found ",
                    value);
}

void check_beta(const char* kernel, const char* name, double value) {
  TORCH_CHECK_VALUE(value >= 0 && value < 1, kernel, ": ", name,
                    ": expected a number from 0 up to but not 1 but found ",
                    value);
}

}  // namespace

void adam_step(const AdamHyper& hyper, std::int64_t step,
               const OptimStep& tensors, at::Tensor exp_avg,
               at::Tensor exp_avg_sq) {
  const char* kernel = "adam_step";
  check_step(kernel, step);
  check_non_negative(kernel, "lr", hyper.lr);
  check_beta(kernel, "beta1", hyper.beta1);
  check_beta(kernel, "beta2", hyper.beta2);
  check_non_negative(kernel, "eps", hyper.eps);
  check_non_negative(kernel, "weight_decay", hyper.weight_decay);
  Update update(kernel, tensors);
  update.add_state(exp_avg, "exp_avg");
  update.add_state(exp_avg_sq, "exp_avg_sq");
  double correction1 = 1;
  double correction2 = 1;
  if (hyper.has_bias_correction) {
    correction1 = 1 - std::pow(hyper.beta1, static_cast<double>(step));
    correction2 = 1 - std::pow(hyper.beta2, static_cast<double>(step));
  }
  const AdamScalars scalars{
      .grad_decay = 1 - hyper.beta1,
      .square_decay = 1 - hyper.beta2,
      .beta1 = hyper.beta1,
      .beta2 = hyper.beta2,
      .eps = hyper.eps,
      .step_size = hyper.lr / correction1,
      .inverse_root_correction = 1 / std::sqrt(correction2),
      .weight_factor =
          hyper.is_decoupled ? 1 - hyper.lr * hyper.weight_decay : 1,
      .l2 = hyper.is_decoupled ? 0 : hyper.weight_decay};
  const auto loop = update.loops_of_type().adam;
  update.run([&](void* weight, const void* grad, void* average, void* square,
                 std::int64_t numel) {
    loop(scalars, weight, grad, average, square, numel);
  });
}

void sgd_step(const SgdHyper& hyper, std::int64_t step,
              const OptimStep& tensors, at::Tensor momentum) {
  const char* kernel = "sgd_step";
  check_step(kernel, step);
  check_non_negative(kernel, "lr", hyper.lr);
  check_non_negative(kernel, "momentum", hyper.momentum);
  check_non_negative(kernel, "weight_decay", hyper.weight_decay);
  TORCH_CHECK_VALUE(
      !hyper.is_nesterov || (hyper.momentum > 0 && hyper.dampening == 0),
      "sgd_step: nesterov: expected momentum above 0 and dampening 0 but "
      "found momentum ",
      hyper.momentum, " and dampening ", hyper.dampening);
  Update update(kernel, tensors);
  const SgdScalars scalars{.lr = hyper.lr,
                           .momentum = hyper.momentum,
                           .grad_factor = 1 - hyper.dampening,
                           .weight_decay = hyper.weight_decay,
                           .is_first = step == 1,
                           .is_nesterov = hyper.is_nesterov};
  if (hyper.momentum == 0) {
    const auto loop = update.loops_of_type().sgd;
    update.run([&](void* weight, const void* grad, void*, void*,
                   std::int64_t numel) { loop(scalars, weight, grad, numel); });
    return;
  }
  update.add_state(momentum, "momentum");
  const auto loop = update.loops_of_type().sgd_momentum;
  update.run(
      [&](void* weight, const void* grad, void* state, void*,
          std::int64_t numel) { loop(scalars, weight, grad, state, numel); });
}

void adagrad_step(const AdagradHyper& hyper, std::int64_t step,
                  const OptimStep& tensors, at::Tensor sum_of_squares) {
  const char* kernel = "adagrad_step";
  check_step(kernel, step);
  check_non_negative(kernel, "lr", hyper.lr);
  check_non_negative(kernel, "lr_decay", hyper.lr_decay);
  check_non_negative(kernel, "eps", hyper.eps);
  check_non_negative(kernel, "weight_decay", hyper.weight_decay);
  Update update(kernel, tensors);
  update.add_state(sum_of_squares, "sum_of_squares");
  const AdagradScalars scalars{
      .lr = hyper.lr / (1 + static_cast<double>(step - 1) * hyper.lr_decay),
      .eps = hyper.eps,
      .weight_decay = hyper.weight_decay};
  const auto loop = update.loops_of_type().adagrad;
  update.run(
      [&](void* weight, const void* grad, void* state, void*,
          std::int64_t numel) { loop(scalars, weight, grad, state, numel); });
}

void lion_step(const LionHyper& hyper, const OptimStep& tensors,
               at::Tensor exp_avg) {
  const char* kernel = "lion_step";
  check_non_negative(kernel, "lr", hyper.lr);
  check_beta(kernel, "beta1", hyper.beta1);
  check_beta(kernel, "beta2", hyper.beta2);
  check_non_negative(kernel, "weight_decay", hyper.weight_decay);
  Update update(kernel, tensors);
  update.add_state(exp_avg, "exp_avg");
  const LionScalars scalars{.lr = hyper.lr,
                            .beta1 = hyper.beta1,
                            .beta2 = hyper.beta2,
                            .weight_factor = 1 - hyper.lr * hyper.weight_decay};
  const auto loop = update.loops_of_type().lion;
  update.run(
      [&](void* weight, const void* grad, void* state, void*,
          std::int64_t numel) { loop(scalars, weight, grad, state, numel); });
}

}  // namespace nfold::kernels
