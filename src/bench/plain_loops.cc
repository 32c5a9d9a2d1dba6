#include "bench/plain_loops.h"

#include <ATen/Parallel.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "kernels/simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NFOLD_BENCH_X86 1
#endif

namespace nfold::bench {
namespace {

// Elements that a thread takes at least.
constexpr std::int64_t kGrainNumel = std::int64_t{1} << 16;

template <int kNumRead, int kNumWritten>
[[gnu::always_inline]] inline void update_loop(
    const std::array<float*, kNumRead>& arrays, std::int64_t begin,
    std::int64_t end) {
  const std::array<float*, kNumRead> at = arrays;  // none of them is written to
#pragma GCC ivdep
  for (std::int64_t i = begin; i < end; ++i) {
    float sum = 0;
    for (int a = 0; a < kNumRead; ++a) sum += at[a][i];
    const float mean = sum * (1.0F / kNumRead);
    for (int a = 0; a < kNumWritten; ++a) {
      at[a][i] = 0.5F * (at[a][i] + mean);
    }
  }
}

[[gnu::always_inline]] inline double sum_loop(const float* x,
                                              std::int64_t begin,
                                              std::int64_t end) {
  // As many sums as keep the adders busy, so that reading is what takes time.
  constexpr std::int64_t kNumSums = 64;
  std::array<float, kNumSums> sums{};
  std::int64_t i = begin;
  for (; i + kNumSums <= end; i += kNumSums) {
    for (std::int64_t s = 0; s < kNumSums; ++s) sums[s] += x[i + s];
  }
  double sum = 0;
  for (const float part : sums) sum += part;
  for (; i < end; ++i) sum += x[i];
  return sum;
}

#ifdef NFOLD_BENCH_X86
template <int kNumRead, int kNumWritten>
[[gnu::target("avx512f,prefer-vector-width=512")]] void update_avx512(
    const std::array<float*, kNumRead>& arrays, std::int64_t begin,
    std::int64_t end) {
  update_loop<kNumRead, kNumWritten>(arrays, begin, end);
}
template <int kNumRead, int kNumWritten>
[[gnu::target("avx2")]] void update_avx2(
    const std::array<float*, kNumRead>& arrays, std::int64_t begin,
    std::int64_t end) {
  update_loop<kNumRead, kNumWritten>(arrays, begin, end);
}
[[gnu::target("avx512f,prefer-vector-width=512")]] double sum_avx512(
    const float* x, std::int64_t begin, std::int64_t end) {
  return sum_loop(x, begin, end);
}
[[gnu::target("avx2")]] double sum_avx2(const float* x, std::int64_t begin,
                                        std::int64_t end) {
  return sum_loop(x, begin, end);
}
#endif

template <int kNumRead, int kNumWritten>
void update_range(const std::array<float*, kNumRead>& arrays,
                  std::int64_t begin, std::int64_t end) {
#ifdef NFOLD_BENCH_X86
  switch (kernels::active_simd()) {
    case kernels::Simd::kAvx512:
      return update_avx512<kNumRead, kNumWritten>(arrays, begin, end);
    case kernels::Simd::kAvx2:
      return update_avx2<kNumRead, kNumWritten>(arrays, begin, end);
    case kernels::Simd::kBaseline:
      break;
  }
#endif
  update_loop<kNumRead, kNumWritten>(arrays, begin, end);
}

double sum_range(const float* x, std::int64_t begin, std::int64_t end) {
#ifdef NFOLD_BENCH_X86
  switch (kernels::active_simd()) {
    case kernels::Simd::kAvx512:
      return sum_avx512(x, begin, end);
    case kernels::Simd::kAvx2:
      return sum_avx2(x, begin, end);
    case kernels::Simd::kBaseline:
      break;
  }
#endif
  return sum_loop(x, begin, end);
}

template <int kNumRead, int kNumWritten>
void update(at::ArrayRef<at::Tensor> arrays) {
  std::array<float*, kNumRead> pointers{};
  for (int a = 0; a < kNumRead; ++a) {
    pointers[a] = arrays[a].mutable_data_ptr<float>();
  }
  at::parallel_for(0, arrays[0].numel(), kGrainNumel,
                   [&](std::int64_t begin, std::int64_t end) {
                     update_range<kNumRead, kNumWritten>(pointers, begin, end);
                   });
}

void check_array(const at::Tensor& array, std::int64_t numel) {
  TORCH_CHECK_VALUE(
      array.scalar_type() == at::kFloat && array.is_contiguous() &&
          array.is_cpu() && array.numel() == numel,
      "expected a contiguous fp32 CPU tensor of ", numel,
      " elements but found ", array.toString(), " of ", array.numel());
}

}  // namespace

void copy_bytes(const at::Tensor& to, const at::Tensor& from) {
  TORCH_CHECK_VALUE(
      to.nbytes() == from.nbytes() && to.is_contiguous() &&
          from.is_contiguous(),
      "copy_bytes: expected contiguous tensors of one size but found ",
      to.nbytes(), " and ", from.nbytes(), " bytes");
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  constexpr auto kGrainBytes =
      static_cast<std::int64_t>(sizeof(float)) * kGrainNumel;
  at::parallel_for(0, static_cast<std::int64_t>(from.nbytes()), kGrainBytes,
                   [&](std::int64_t begin, std::int64_t end) {
                     std::memcpy(target + begin, source + begin,
                                 static_cast<std::size_t>(end - begin));
                   });
}

void update_in_place(at::ArrayRef<at::Tensor> arrays, int num_written) {
  for (const at::Tensor& array : arrays) check_array(array, arrays[0].numel());
  const auto num_read = static_cast<int>(arrays.size());
  const auto is = [&](int read, int written) {
    return num_read == read && num_written == written;
  };
  if (is(1, 1)) return update<1, 1>(arrays);
  if (is(2, 1)) return update<2, 1>(arrays);
  if (is(3, 2)) return update<3, 2>(arrays);
  if (is(4, 1)) return update<4, 1>(arrays);
  if (is(4, 3)) return update<4, 3>(arrays);
  TORCH_CHECK_VALUE(false, "update_in_place: expected 1 of 1, 1 of 2, 2 of 3, ",
                    "1 of 4 or 3 of 4 arrays to write but found ", num_written,
                    " of ", num_read);
}

double read_all(const at::Tensor& array) {
  check_array(array, array.numel());
  const auto* x = array.const_data_ptr<float>();
  std::mutex mutex;
  double sum = 0;
  at::parallel_for(0, array.numel(), kGrainNumel,
                   [&](std::int64_t begin, std::int64_t end) {
                     const double part = sum_range(x, begin, end);
                     const std::lock_guard lock(mutex);
                     sum += part;
                   });
  return sum;
}

}  // namespace nfold::bench
