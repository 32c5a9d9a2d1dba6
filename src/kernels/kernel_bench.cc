// Speed of the kernels beside that of memcpy, measured in the same run:
//
//   nfold_kernel_bench [elements in millions, 100] [threads, all]
//
// Bytes are those a kernel has to read and write at least. NFOLD_SIMD chooses
// the instruction set.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cast_copy.h"
#include "kernels/norm.h"
#include "kernels/optim_step.h"
#include "kernels/quantize.h"
#include "kernels/simd.h"
#include "kernels/sum_tree.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nfold::kernels {
namespace {

constexpr int kNumRepetitions = 7;

at::Tensor huge_page_tensor(std::int64_t numel, at::ScalarType dtype) {
  const at::Tensor tensor = at::empty({numel}, dtype);
#ifdef __linux__
  // Part of a page at either end keeps its size.
  constexpr std::uintptr_t kPageBytes = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data_ptr());
  const std::uintptr_t first = (begin + kPageBytes - 1) & ~(kPageBytes - 1);
  const std::uintptr_t last = (begin + tensor.nbytes()) & ~(kPageBytes - 1);
  if (last > first) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  tensor.fill_(0.01);
  return tensor;
}

void measure(const std::string& name, double num_bytes,
             const std::function<void()>& run) {
  double best_ms = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kNumRepetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - start;
    best_ms = std::min(best_ms, taken.count());
  }
  fmt::print("{:<34} {:>8.1f} ms {:>7.1f} GB/s\n", name, best_ms,
             num_bytes / best_ms / 1e6);
}

void run_all(std::int64_t numel) {
  const auto count = static_cast<double>(numel);
  const at::Tensor a = huge_page_tensor(numel, at::kFloat);
  const at::Tensor b = huge_page_tensor(numel, at::kFloat);
  const at::Tensor c = huge_page_tensor(numel, at::kFloat);
  const at::Tensor d = huge_page_tensor(numel, at::kFloat);
  const at::Tensor low = huge_page_tensor(numel, at::kBFloat16);
  const at::Tensor low_grad = huge_page_tensor(numel, at::kBFloat16);
  const at::Tensor half = huge_page_tensor(numel, at::kHalf);

  measure("memcpy", 8 * count, [&] {
    at::parallel_for(0, numel, 1 << 16, [&](auto begin, auto end) {
      std::memcpy(a.mutable_data_ptr<float>() + begin,
                  b.const_data_ptr<float>() + begin, (end - begin) * 4);
    });
  });
  measure("sum_tree fp32, 2 inputs", 12 * count, [&] { sum_tree(a, {b, c}); });
  measure("sum_tree fp32, 2 inputs, in place", 12 * count,
          [&] { sum_tree(a, {a, b}); });
  measure("sum_tree fp32, 4 inputs", 20 * count,
          [&] { sum_tree(a, {a, b, c, d}); });
  measure("sum_tree bf16, 2 inputs", 6 * count,
          [&] { sum_tree(low, {low, low_grad}); });
  measure("scaled_cast fp32 to fp32", 8 * count,
          [&] { scaled_cast(a, b, 0.5F); });
  measure("scaled_cast fp32 to bf16", 6 * count,
          [&] { scaled_cast(low, a, 0.5F); });
  measure("scaled_cast bf16 to fp32", 6 * count,
          [&] { scaled_cast(a, low, 0.5F); });
  measure("scaled_cast fp32 to fp16", 6 * count,
          [&] { scaled_cast(half, a, 0.5F); });
  measure("scaled_cast fp16 to fp32", 6 * count,
          [&] { scaled_cast(a, half, 0.5F); });
  measure("accumulate fp32 += fp32", 12 * count,
          [&] { accumulate(a, b, 0.5F); });
  measure("accumulate fp32 += bf16", 10 * count,
          [&] { accumulate(a, low, 0.5F); });
  measure("norm_squared fp32", 4 * count, [&] { norm_squared(a); });
  measure("norm_squared bf16", 2 * count, [&] { norm_squared(low); });
  const auto weights = quantized(a, kWeightCodec);
  const auto grads = quantized(b, kGradientCodec);
  const auto error = quantized(c, error_codec_of(kGradientCodec));
  measure("quantize fp32, 8 bits", 5 * count,
          [&] { quantize(weights, a, kWeightCodec); });
  measure("quantize bf16, 8 bits", 3 * count,
          [&] { quantize(weights, low, kWeightCodec); });
  measure("dequantize fp32, 8 bits", 5 * count,
          [&] { dequantize(a, weights, kWeightCodec); });
  measure("dequantize bf16, 8 bits", 3 * count,
          [&] { dequantize(low, weights, kWeightCodec); });
  measure("quantize fp32, 4 bits", 4.5 * count,
          [&] { quantize(grads, a, kGradientCodec); });
  measure("quantize fp32, 4 bits, feedback", 6.5 * count, [&] {
    quantize_with_feedback(grads, error, a, kGradientCodec, 0.8F);
  });
  measure("dequantize_sum fp32, 4 bits, 2 inputs", 5 * count,
          [&] { dequantize_sum(a, {grads, grads}, kGradientCodec); });
  a.fill_(0.1);
  b.fill_(0.1);
  c.zero_();
  d.zero_();
  measure("adam_step fp32", 28 * count, [&] {
    adam_step({.weight_decay = 0.1}, 10, {.master = a, .grad = b}, c, d);
  });
  measure("adam_step fp32, scaled gradient", 28 * count, [&] {
    adam_step({.weight_decay = 0.1}, 10,
              {.master = a, .grad = b, .grad_scale = 0.5}, c, d);
  });
  measure("adam_step bf16 gradient and copy", 28 * count, [&] {
    adam_step({.weight_decay = 0.1}, 10,
              {.master = a, .grad = low_grad, .low_precision = low}, c, d);
  });
  measure("sgd_step fp32, momentum", 20 * count, [&] {
    sgd_step({.momentum = 0.9}, 10, {.master = a, .grad = b}, c);
  });
  measure("adagrad_step fp32", 20 * count,
          [&] { adagrad_step({}, 10, {.master = a, .grad = b}, d); });
  measure("lion_step fp32", 20 * count,
          [&] { lion_step({}, {.master = a, .grad = b}, c); });
}

}  // namespace
}  // namespace nfold::kernels

int main(int argc, char** argv) {
  const std::int64_t millions = argc > 1 ? std::atoll(argv[1]) : 100;
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  fmt::print("{} million elements, {} threads, {}\n", millions,
             at::get_num_threads(),
             nfold::kernels::name_of(nfold::kernels::active_simd()));
  nfold::kernels::run_all(millions * 1000000);
  return 0;
}
