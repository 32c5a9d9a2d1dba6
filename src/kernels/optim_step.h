// File: optim_step.h
//
// One optimizer update of a flat shard in one pass over memory: scale the
// gradient, update master weights and state, write the low-precision copy.
//
//   AdamHyper hyper{.lr = 1e-3, .weight_decay = 0.01};
//   adam_step(hyper, step, {.master = master, .grad = grad,
//             .low_precision = bf16_params, .grad_scale = 1 / loss_scale},
//             exp_avg, exp_avg_sq);
//
// All tensors are contiguous CPU tensors with the element count of the master
// weights. The formulas are those of torch's optimizers of the same name, and
// the arithmetic is fp32, or fp64 if the master weights are fp64. An element's
// result is the same bits whichever range it is updated with, on every
// instruction set and thread count. Callable from any thread; large shards use
// at::parallel_for.
//
// Each raises c10::ValueError when a tensor does not fit or a number is out of
// its range, c10::NotImplementedError for an integer dtype. Nothing has changed
// then.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

namespace nfold::kernels {

// What every optimizer updates.
struct OptimStep {
  // Updated in place. fp32 as a rule; bf16 and fp16 are widened, updated and
  // rounded again.
  at::Tensor master{};
  // fp32, fp64, fp16 or bf16. Not changed.
  at::Tensor grad{};
  // Undefined, or receives the rounded new weights. May alias `grad`'s memory
  // at the same offset if its elements are as large.
  at::Tensor low_precision{};
  // The gradient is multiplied with it first, and the product rounded.
  double grad_scale = 1;
};

struct AdamHyper {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  // True: AdamW, weights decay by lr * weight_decay. False: weight_decay times
  // the weight is added to the gradient.
  bool is_decoupled = true;
  bool has_bias_correction = true;
};

// step counts from 1. State: zero before the first step.
void adam_step(const AdamHyper& hyper, std::int64_t step,
               const OptimStep& tensors, at::Tensor exp_avg,
               at::Tensor exp_avg_sq);

struct SgdHyper {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool is_nesterov = false;
};

// step counts from 1; in the first one the momentum becomes the gradient
// undamped. `momentum` is not used, and may be undefined, if hyper.momentum is
// 0.
void sgd_step(const SgdHyper& hyper, std::int64_t step,
              const OptimStep& tensors, at::Tensor momentum);

struct AdagradHyper {
  double lr = 1e-2;
  double lr_decay = 0;
  double eps = 1e-10;
  double weight_decay = 0;
};

// step counts from 1. sum_of_squares starts with the initial accumulator value.
void adagrad_step(const AdagradHyper& hyper, std::int64_t step,
                  const OptimStep& tensors, at::Tensor sum_of_squares);

struct LionHyper {
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;
};

// exp_avg: zero before the first step.
void lion_step(const LionHyper& hyper, const OptimStep& tensors,
               at::Tensor exp_avg);

}  // namespace nfold::kernels
