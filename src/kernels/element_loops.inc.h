// File: element_loops.inc.h
//
// Part of loops.inc.h: conversions, sums, maxima and squares.

namespace nfold::kernels {
namespace {

struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

template <typename T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<Half> {
  using type = float;
};
template <>
struct WideOf<Bfloat16> {
  using type = float;
};
template <typename T>
using Wide = typename WideOf<T>::type;

// What two elements are combined in.
template <typename A, typename B>
struct CommonOf {
  using type = float;
};
template <typename B>
struct CommonOf<double, B> {
  using type = double;
};
template <typename A>
struct CommonOf<A, double> {
  using type = double;
};
template <>
struct CommonOf<double, double> {
  using type = double;
};
template <typename A, typename B>
using Common = typename CommonOf<A, B>::type;

#define NFOLD_INLINE __attribute__((always_inline)) inline

NFOLD_INLINE std::uint32_t bits_of(float x) {
  return __builtin_bit_cast(std::uint32_t, x);
}
NFOLD_INLINE float float_of(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

NFOLD_INLINE float widen(float x) { return x; }
NFOLD_INLINE double widen(double x) { return x; }
NFOLD_INLINE float widen(Bfloat16 x) {
  return float_of(static_cast<std::uint32_t>(x.bits) << 16);
}
NFOLD_INLINE float widen(Half x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  // Exponents 0 (subnormal: an integer times 2^-24) and 31 (infinite or NaN)
  // have their own meaning; for all others the exponent moves by 112.
  const std::uint32_t subnormal = bits_of(
      static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  const std::uint32_t shifted = magnitude << 13;
  const std::uint32_t normal = shifted + (112u << 23);
  const std::uint32_t special = shifted | 0x7f800000u;
  const std::uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
  std::uint32_t bits = normal;
  bits = magnitude < 0x0400u ? subnormal : bits;
  bits = magnitude >= 0x7c00u ? special | quiet : bits;
  return float_of(sign | bits);
}

template <typename To>
struct Narrow;

template <>
struct Narrow<float> {
  static NFOLD_INLINE float from(float x) { return x; }
  static NFOLD_INLINE float from(double x) { return static_cast<float>(x); }
};

template <>
struct Narrow<double> {
  static NFOLD_INLINE double from(float x) { return x; }
  static NFOLD_INLINE double from(double x) { return x; }
};

// The float whose last bit is set if it is not x: rounding it again to fewer
// bits gives what rounding x at once would.
NFOLD_INLINE float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = nearest;
  const std::uint32_t bits = bits_of(nearest);
  const bool is_exact = back == x;
  const bool is_nan = x != x;
  const bool is_odd = (bits & 1u) != 0;
  const std::uint32_t toward =
      __builtin_fabs(x) > __builtin_fabs(back) ? bits + 1u : bits - 1u;
  return float_of(is_exact || is_nan || is_odd ? bits : toward);
}

template <>
struct Narrow<Bfloat16> {
  static NFOLD_INLINE Bfloat16 from(float x) {
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const std::uint32_t quiet = bits | 0x400000u;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<std::uint16_t>((is_nan ? quiet : rounded) >> 16)};
  }
  static NFOLD_INLINE Bfloat16 from(double x) { return from(round_to_odd(x)); }
};

template <>
struct Narrow<Half> {
  static NFOLD_INLINE Half from(float x) {
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the result is a multiple of 2^-24, which is the distance of
    // neighbours at 0.5: the addition rounds.
    const std::uint32_t subnormal =
        bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t normal =
        (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    std::uint32_t result = normal;
    result = magnitude < 0x38800000u ? subnormal : result;
    result = magnitude >= 0x47800000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? nan : result;
    return {static_cast<std::uint16_t>(sign | result)};
  }
  static NFOLD_INLINE Half from(double x) { return from(round_to_odd(x)); }
};

template <typename T>
void widen_loop(void* out, const void* x, std::int64_t numel) {
  auto* to = static_cast<float*>(out);
  const auto* from = static_cast<const T*>(x);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) to[i] = widen(from[i]);
}

template <typename T>
void narrow_loop(void* out, const void* x, std::int64_t numel) {
  auto* to = static_cast<T*>(out);
  const auto* from = static_cast<const float*>(x);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) to[i] = Narrow<T>::from(from[i]);
}

// Integers wrap around, so they are added as unsigned numbers.
struct Sum {
  template <typename T>
  static NFOLD_INLINE T of(T a, T b) {
    return static_cast<T>(a + b);
  }
};

// A NaN wins.
struct Max {
  template <typename T>
  static NFOLD_INLINE T of(T a, T b) {
    const T larger = a > b ? a : b;  // b if one of them is NaN
    return a != a ? a : larger;
  }
};

template <typename T>
NFOLD_INLINE T widen(T x) {
  return x;
}

// `out` may be `a` or `b`: elements do not depend on each other.
template <typename Op, typename T>
void reduce_loop(void* out, const void* a, const void* b, std::int64_t numel) {
  auto* to = static_cast<Wide<T>*>(out);
  const auto* left = static_cast<const T*>(a);
  const auto* right = static_cast<const T*>(b);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    to[i] = Op::of(widen(left[i]), widen(right[i]));
  }
}

template <typename From, typename To>
void scaled_cast_loop(void* out, const void* x, double scale,
                      std::int64_t numel) {
  using Compute = Common<From, To>;
  auto* to = static_cast<To*>(out);
  const auto* from = static_cast<const From*>(x);
  const auto factor = static_cast<Compute>(scale);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    to[i] = Narrow<To>::from(static_cast<Compute>(widen(from[i])) * factor);
  }
}

template <typename Accumulator, typename T>
void accumulate_loop(void* out, const void* x, double scale,
                     std::int64_t numel) {
  using Compute = Common<Accumulator, T>;
  auto* to = static_cast<Accumulator*>(out);
  const auto* from = static_cast<const T*>(x);
  const auto factor = static_cast<Compute>(scale);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) {
    const Compute product = static_cast<Compute>(widen(from[i])) * factor;
    to[i] =
        Narrow<Accumulator>::from(static_cast<Compute>(widen(to[i])) + product);
  }
}

// 32 sums side by side, element i going to sum i mod 32: arrays of fixed
// length, for the compiler to keep in registers.
template <typename T>
CompensatedSum square_loop(const void* x, std::int64_t numel) {
  constexpr int kNumSums = 32;
  const auto* from = static_cast<const T*>(x);
  double high[kNumSums] = {};
  double low[kNumSums] = {};
  // As CompensatedSum::add, which must not be compiled for this instruction
  // set: the linker might take that copy for all.
  const auto add = [&](int j, double term) {
    const double sum = high[j] + term;
    const double part = sum - high[j];
    low[j] += (high[j] - (sum - part)) + (term - part);
    high[j] = sum;
  };
  std::int64_t i = 0;
  for (; i + kNumSums <= numel; i += kNumSums) {
    for (int j = 0; j < kNumSums; ++j) {
      const double value = widen(from[i + j]);
      add(j, value * value);
    }
  }
  for (int j = 0; i < numel; ++i, ++j) {
    const double value = widen(from[i]);
    add(j, value * value);
  }
  for (int j = 1; j < kNumSums; ++j) {
    add(0, high[j]);
    low[0] += low[j];
  }
  return {high[0], low[0]};
}

}  // namespace
}  // namespace nfold::kernels
