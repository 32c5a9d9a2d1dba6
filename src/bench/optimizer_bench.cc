#include "bench/optimizer_bench.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/ops/_fused_adamw.h>

#include <functional>
#include <utility>

#include "bench/huge_pages.h"
#include "bench/plain_loops.h"
#include "kernels/cast_copy.h"
#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/optim_step.h"
#include "kernels/simd.h"
#include "kernels/sum_tree.h"
#include "nfold/host_memory.h"

namespace nfold::bench {
namespace {

// Any will do: the arithmetic is the same at each.
constexpr std::int64_t kStep = 10;

struct Buffers {
  at::Tensor a, b, c, d;     // fp32
  at::Tensor low, low_grad;  // bf16

  explicit Buffers(std::int64_t numel) {
    for (at::Tensor* buffer : {&a, &b, &c, &d}) {
      *buffer = at::empty({numel}, at::kFloat);
    }
    for (at::Tensor* buffer : {&low, &low_grad}) {
      *buffer = at::empty({numel}, at::kBFloat16);
    }
    for (const at::Tensor& buffer : {a, b, c, d, low, low_grad}) {
      buffer.fill_(0.01);  // makes the pages
    }
  }

  std::int64_t num_bytes() const {
    std::size_t sum = 0;
    for (const at::Tensor& buffer : {a, b, c, d, low, low_grad}) {
      sum += buffer.nbytes();
    }
    return static_cast<std::int64_t>(sum);
  }
};

struct Kernel {
  std::string name;
  ElementBytes bytes;
  // Index of the plain loop over as many arrays; its own for yardsticks.
  std::size_t plain_loop;
  std::function<void()> run;
};

// The first entries of kernels_of, in this order.
enum Yardstick : std::size_t {
  kCopy,
  kRead,
  kUpdate1Of1,
  kUpdate1Of2,
  kUpdate2Of3,
  kUpdate1Of4,
  kUpdate3Of4,
  kNumYardsticks,
};

void torch_fused_adamw(const Buffers& x) {
  const at::Tensor step = at::full({}, static_cast<float>(kStep), at::kFloat);
  at::_fused_adamw_({x.a}, {x.b}, {x.c}, {x.d}, {}, {step}, /*lr=*/1e-3,
                    /*beta1=*/0.9, /*beta2=*/0.999, /*weight_decay=*/0.1,
                    /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
}

std::vector<Kernel> kernels_of(const Buffers& x) {
  using namespace kernels;  // NOLINT(google-build-using-namespace)
  const OptimStep fp32{.master = x.a, .grad = x.b};
  return {
      {"copy", {4, 4}, kCopy, [=] { copy_bytes(x.a, x.b); }},
      {"plain loop, 1 read", {4, 0}, kRead, [=] { read_all(x.b); }},
      {"plain loop, 1 read, 1 written",
       {4, 4},
       kUpdate1Of1,
       [=] { update_in_place({x.a}, 1); }},
      {"plain loop, 2 read, 1 written",
       {8, 4},
       kUpdate1Of2,
       [=] { update_in_place({x.a, x.b}, 1); }},
      {"plain loop, 3 read, 2 written",
       {12, 8},
       kUpdate2Of3,
       [=] { update_in_place({x.a, x.c, x.b}, 2); }},
      {"plain loop, 4 read, 1 written",
       {16, 4},
       kUpdate1Of4,
       [=] { update_in_place({x.a, x.b, x.c, x.d}, 1); }},
      {"plain loop, 4 read, 3 written",
       {16, 12},
       kUpdate3Of4,
       [=] { update_in_place({x.a, x.c, x.d, x.b}, 3); }},
      {"torch _fused_adamw_",
       {16, 12},
       kUpdate3Of4,
       [=] { torch_fused_adamw(x); }},
      {"AdamW",
       {16, 12},
       kUpdate3Of4,
       [=] { adam_step({.weight_decay = 0.1}, kStep, fp32, x.c, x.d); }},
      {"AdamW, bf16 gradient and copy",
       {14, 14},
       kUpdate3Of4,
       [=] {
         adam_step({.weight_decay = 0.1}, kStep,
                   {.master = x.a, .grad = x.low_grad, .low_precision = x.low},
                   x.c, x.d);
       }},
      {"SGD with momentum",
       {12, 8},
       kUpdate2Of3,
       [=] { sgd_step({.momentum = 0.9}, kStep, fp32, x.c); }},
      {"Adagrad",
       {12, 8},
       kUpdate2Of3,
       [=] { adagrad_step({}, kStep, fp32, x.d); }},
      {"Lion", {12, 8}, kUpdate2Of3, [=] { lion_step({}, fp32, x.c); }},
      {"norm and non-finite", {4, 0}, kRead, [=] { norm_squared(x.b); }},
      {"first non-finite", {4, 0}, kRead, [=] { first_non_finite(x.b); }},
      {"sum of 2, in place",
       {8, 4},
       kUpdate1Of2,
       [=] { sum_tree(x.a, {x.a, x.b}); }},
      {"sum of 2, streamed",
       {8, 4},
       kUpdate1Of2,
       [=] { sum_tree(x.a, {x.b, x.c}, kernels::Stores::kStreaming); }},
      {"sum of 4, in place",
       {16, 4},
       kUpdate1Of4,
       [=] { sum_tree(x.a, {x.a, x.b, x.c, x.d}); }},
      {"accumulate fp32 += bf16",
       {6, 4},
       kUpdate1Of2,
       [=] { accumulate(x.a, x.low, 0.5F); }},
      {"cast fp32 to bf16", {4, 2}, kCopy, [=] { scaled_cast(x.low, x.b); }},
      {"cast bf16 to fp32", {2, 4}, kCopy, [=] { scaled_cast(x.a, x.low); }},
  };
}

KernelRow row_of(const std::vector<Kernel>& measured,
                 const std::vector<std::vector<double>>& seconds, std::size_t i,
                 double numel) {
  const Kernel& kernel = measured[i];
  const double num_bytes = numel * kernel.bytes.total();
  // Both sides as seconds for a byte.
  const auto by = [&](std::size_t other) {
    const Spread ratio = ratio_of(seconds[other], seconds[i]);
    const double scale = static_cast<double>(kernel.bytes.total()) /
                         measured[other].bytes.total();
    return Spread{ratio.median * scale, ratio.min * scale, ratio.max * scale};
  };
  return {.name = kernel.name,
          .bytes = kernel.bytes,
          .seconds = spread_of(seconds[i]),
          .gb_per_second = rate_of(num_bytes / 1e9, seconds[i]),
          .by_plain_loop = by(kernel.plain_loop),
          .by_copy = by(kCopy),
          .is_yardstick = i < kNumYardsticks};
}

}  // namespace

OptimizerBench bench_optimizer(const OptimizerBenchOptions& options) {
  TORCH_CHECK_VALUE(options.numel >= 1 && options.num_rounds >= 1,
                    "bench optimizer: expected at least 1 element and 1 round ",
                    "but found ", options.numel, " and ", options.num_rounds);
  enable_host_cache();  // as an Engine does: huge pages where permitted
  const Buffers buffers(options.numel);
  const auto measured = kernels_of(buffers);
  std::vector<std::function<void()>> runs;
  runs.reserve(measured.size());
  for (const Kernel& kernel : measured) runs.push_back(kernel.run);
  const auto seconds = time_in_turns(runs, options.num_rounds);
  OptimizerBench bench{.numel = options.numel,
                       .num_threads = at::get_num_threads(),
                       .num_rounds = options.num_rounds,
                       .simd = name_of(kernels::active_simd()),
                       .buffer_bytes = buffers.num_bytes(),
                       .huge_page_bytes = huge_page_bytes()};
  for (std::size_t i = 0; i < measured.size(); ++i) {
    bench.rows.push_back(
        row_of(measured, seconds, i, static_cast<double>(options.numel)));
  }
  return bench;
}

}  // namespace nfold::bench
