// File: loops.h
//
// The table of element loops that the kernels of this folder are made of. One
// table exists per instruction set; simd.h chooses. Every loop works on plain
// pointers and a count, is elementwise or has a fixed order of operations, and
// gives the same bits in every table and for every way to split a range (the
// payload of a NaN made of two NaNs excepted).
//
// Not for use outside of this folder: use sum_tree.h, cast_copy.h, norm.h,
// optim_step.h, quantize.h and streaming.h.
//
// This header is compiled with different instruction sets. It may declare, but
// not define functions: an inline function's copy made for one instruction set
// would be shared with the others.
#pragma once

#include <cstdint>

#include "kernels/compensated_sum.h"

namespace nfold::kernels {

enum class Element : std::uint8_t {
  kFloat,
  kDouble,
  kHalf,
  kBfloat16,
  kInt8,
  kUint8,
  kInt32,
  kInt64,
};
inline constexpr int kNumElements = 8;
inline constexpr int kNumFloatElements = 4;  // the first ones

// "Wide" is the type sums are taken in: float for kHalf and kBfloat16, for all
// others the element itself.
using UnaryLoop = void (*)(void* out, const void* x, std::int64_t numel);
using BinaryLoop = void (*)(void* out, const void* a, const void* b,
                            std::int64_t numel);
using ScaledLoop = void (*)(void* out, const void* x, double scale,
                            std::int64_t numel);

struct ReduceLoops {
  BinaryLoop of_elements;  // wide <- element, element
  BinaryLoop of_wide;      // wide <- wide, wide
};

// Sum of the squares of up to kNormBlockNumel elements.
using SquareLoop = CompensatedSum (*)(const void* x, std::int64_t numel);

struct AdamScalars {
  double grad_decay;    // 1 - beta1
  double square_decay;  // 1 - beta2
  double beta1;
  double beta2;
  double eps;
  double step_size;                // lr / (1 - beta1^step)
  double inverse_root_correction;  // 1 / sqrt(1 - beta2^step)
  double weight_factor;            // 1 - lr * weight_decay, or 1
  double l2;                       // weight decay added to the gradient, or 0
};

struct SgdScalars {
  double lr;
  double momentum;
  double grad_factor;  // 1 - dampening; 1 in the first step
  double weight_decay;
  bool is_first;
  bool is_nesterov;
};

struct AdagradScalars {
  double lr;  // of this step
  double eps;
  double weight_decay;
};

struct LionScalars {
  double lr;
  double beta1;
  double beta2;
  double weight_factor;  // 1 - lr * weight_decay
};

// For float (index 0) and double (index 1). Pointers are of that type.
struct OptimizerLoops {
  void (*adam)(const AdamScalars&, void* weight, const void* grad,
               void* exp_avg, void* exp_avg_sq, std::int64_t numel);
  void (*sgd)(const SgdScalars&, void* weight, const void* grad,
              std::int64_t numel);
  void (*sgd_momentum)(const SgdScalars&, void* weight, const void* grad,
                       void* momentum, std::int64_t numel);
  void (*adagrad)(const AdagradScalars&, void* weight, const void* grad,
                  void* sum_of_squares, std::int64_t numel);
  void (*lion)(const LionScalars&, void* weight, const void* grad,
               void* exp_avg, std::int64_t numel);
};

// The smallest and the largest of some floats as integers that are ordered as
// they are: what order_of(x) in quantize_loops.inc.h gives. An infinity or NaN
// lies beyond all finite numbers, at either end.
struct OrderedRange {
  std::int32_t lowest;
  std::int32_t highest;
};

// code = round((x - offset) * inverse) within [lowest, highest], minus lowest,
// and back: x = (code + lowest) * step + offset.
struct CodeScalars {
  float offset;
  float inverse;
  float step;
  float lowest;
  float highest;
};

// Codes of one block of floats: one byte each, or two to a byte. Of n codes
// byte i then has code i in its low half and code i + (n + 1) / 2, if there is
// one, in its high half.
struct QuantizeLoops {
  void (*encode)(std::uint8_t* codes, const float* x, std::int64_t numel,
                 const CodeScalars&);
  void (*decode)(float* x, const std::uint8_t* codes, std::int64_t numel,
                 const CodeScalars&);
};

struct Loops {
  UnaryLoop widen[kNumElements];   // null where wide is the element
  UnaryLoop narrow[kNumElements];  // null where wide is the element
  ReduceLoops sum[kNumElements];
  ReduceLoops max[kNumElements];
  // [from][to]: to <- round(from * scale)
  ScaledLoop scaled_cast[kNumFloatElements][kNumFloatElements];
  // [accumulator][x]: accumulator <- round(accumulator + x * scale)
  ScaledLoop accumulate[kNumFloatElements][kNumFloatElements];
  SquareLoop square[kNumFloatElements];
  OptimizerLoops optimizer[2];
  OrderedRange (*range)(const float* x, std::int64_t numel);
  QuantizeLoops quantize_8_bits;
  QuantizeLoops quantize_4_bits;
  // A copy past the caches, and what makes it visible to other threads.
  void (*stream)(void* to, const void* from, std::int64_t num_bytes);
  void (*finish_stream)();
};

extern const Loops kBaselineLoops;
#ifdef NFOLD_KERNELS_X86
extern const Loops kAvx2Loops;
extern const Loops kAvx512Loops;
#endif

}  // namespace nfold::kernels
