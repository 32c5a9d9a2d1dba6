// File: optimizer_loops.inc.h
//
// Part of loops.inc.h: one update of flat shards. The formulas are those of
// torch's optimizers of the same name.

namespace nfold::kernels {
namespace {

NFOLD_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
NFOLD_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <typename T>
void adam_loop(const AdamScalars& scalars, void* weight, const void* grad,
               void* exp_avg, void* exp_avg_sq, std::int64_t numel) {
  auto* weights = static_cast<T*>(weight);
  const auto* grads = static_cast<const T*>(grad);
  auto* averages = static_cast<T*>(exp_avg);
  auto* squares = static_cast<T*>(exp_avg_sq);
  const auto grad_decay = static_cast<T>(scalars.grad_decay);
  const auto square_decay = static_cast<T>(scalars.square_decay);
  const auto beta1 = static_cast<T>(scalars.beta1);
  const auto beta2 = static_cast<T>(scalars.beta2);
  const auto eps = static_cast<T>(scalars.eps);
  const auto step_size = static_cast<T>(scalars.step_size);
  const auto inverse_root = static_cast<T>(scalars.inverse_root_correction);
  const auto weight_factor = static_cast<T>(scalars.weight_factor);
  const auto l2 = static_cast<T>(scalars.l2);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = grads[i] + l2 * weights[i];
    const T average = beta1 * averages[i] + grad_decay * g;
    const T square = beta2 * squares[i] + square_decay * (g * g);
    const T denominator = square_root(square) * inverse_root + eps;
    averages[i] = average;
    squares[i] = square;
    weights[i] =
        weight_factor * weights[i] - step_size * (average / denominator);
  }
}

template <typename T>
void sgd_loop(const SgdScalars& scalars, void* weight, const void* grad,
              std::int64_t numel) {
  auto* weights = static_cast<T*>(weight);
  const auto* grads = static_cast<const T*>(grad);
  const auto lr = static_cast<T>(scalars.lr);
  const auto weight_decay = static_cast<T>(scalars.weight_decay);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = grads[i] + weight_decay * weights[i];
    weights[i] = weights[i] - lr * g;
  }
}

template <typename T>
void sgd_momentum_loop(const SgdScalars& scalars, void* weight,
                       const void* grad, void* momentum, std::int64_t numel) {
  auto* weights = static_cast<T*>(weight);
  const auto* grads = static_cast<const T*>(grad);
  auto* momenta = static_cast<T*>(momentum);
  const auto lr = static_cast<T>(scalars.lr);
  const auto weight_decay = static_cast<T>(scalars.weight_decay);
  const auto factor = static_cast<T>(scalars.momentum);
  const auto grad_factor = static_cast<T>(scalars.grad_factor);
  const bool is_first = scalars.is_first;
  const bool is_nesterov = scalars.is_nesterov;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = grads[i] + weight_decay * weights[i];
    const T next = factor * momenta[i] + grad_factor * g;
    const T m = is_first ? g : next;
    const T ahead = g + factor * m;
    momenta[i] = m;
    weights[i] = weights[i] - lr * (is_nesterov ? ahead : m);
  }
}

template <typename T>
void adagrad_loop(const AdagradScalars& scalars, void* weight, const void* grad,
                  void* sum_of_squares, std::int64_t numel) {
  auto* weights = static_cast<T*>(weight);
  const auto* grads = static_cast<const T*>(grad);
  auto* sums = static_cast<T*>(sum_of_squares);
  const auto lr = static_cast<T>(scalars.lr);
  const auto eps = static_cast<T>(scalars.eps);
  const auto weight_decay = static_cast<T>(scalars.weight_decay);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = grads[i] + weight_decay * weights[i];
    const T sum = sums[i] + g * g;
    sums[i] = sum;
    weights[i] = weights[i] - lr * (g / (square_root(sum) + eps));
  }
}

template <typename T>
void lion_loop(const LionScalars& scalars, void* weight, const void* grad,
               void* exp_avg, std::int64_t numel) {
  auto* weights = static_cast<T*>(weight);
  const auto* grads = static_cast<const T*>(grad);
  auto* averages = static_cast<T*>(exp_avg);
  const auto lr = static_cast<T>(scalars.lr);
  const auto beta1 = static_cast<T>(scalars.beta1);
  const auto beta2 = static_cast<T>(scalars.beta2);
  const T other1 = static_cast<T>(1.0 - scalars.beta1);
  const T other2 = static_cast<T>(1.0 - scalars.beta2);
  const auto weight_factor = static_cast<T>(scalars.weight_factor);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = grads[i];
    const T direction = beta1 * averages[i] + other1 * g;
    // NaN stays NaN, zero zero; as in torch::sign.
    T update = direction;
    update = direction > 0 ? lr : update;
    update = direction < 0 ? -lr : update;
    averages[i] = beta2 * averages[i] + other2 * g;
    weights[i] = weight_factor * weights[i] - update;
  }
}

}  // namespace
}  // namespace nfold::kernels
