// File: loops.inc.h
//
// The source of all element loops. Included once by each loops_<set>.cc, which
// is compiled for its instruction set after defining NFOLD_LOOPS_NAME, the name
// of the table. Written so that the compiler vectorises it.
//
// Rules that keep the results of all instruction sets equal:
//   - only IEEE operations in a written order, no fused ones (contraction is
//     off), nothing that depends on where a vector begins or ends;
//   - everything has internal linkage, and nothing of a header with inline
//     functions is used: see loops.h.

// clang-format off
#include "kernels/loops.h"
#include "kernels/element_loops.inc.h"
#include "kernels/optimizer_loops.inc.h"
#include "kernels/quantize_loops.inc.h"
#include "kernels/streaming_loops.inc.h"
// clang-format on

namespace nfold::kernels {
namespace {

template <typename Accumulator>
constexpr void fill_row(ScaledLoop* cast, ScaledLoop* accumulate) {
  cast[0] = scaled_cast_loop<float, Accumulator>;
  cast[1] = scaled_cast_loop<double, Accumulator>;
  cast[2] = scaled_cast_loop<Half, Accumulator>;
  cast[3] = scaled_cast_loop<Bfloat16, Accumulator>;
  accumulate[0] = accumulate_loop<Accumulator, float>;
  accumulate[1] = accumulate_loop<Accumulator, double>;
  accumulate[2] = accumulate_loop<Accumulator, Half>;
  accumulate[3] = accumulate_loop<Accumulator, Bfloat16>;
}

template <typename T>
constexpr ReduceLoops sum_loops() {
  return {reduce_loop<Sum, T>, reduce_loop<Sum, Wide<T>>};
}

template <typename T>
constexpr ReduceLoops max_loops() {
  return {reduce_loop<Max, T>, reduce_loop<Max, Wide<T>>};
}

template <typename T>
constexpr OptimizerLoops optimizer_loops() {
  return {adam_loop<T>, sgd_loop<T>, sgd_momentum_loop<T>, adagrad_loop<T>,
          lion_loop<T>};
}

constexpr Loops make_loops() {
  Loops loops{};
  loops.widen[static_cast<int>(Element::kHalf)] = widen_loop<Half>;
  loops.widen[static_cast<int>(Element::kBfloat16)] = widen_loop<Bfloat16>;
  loops.narrow[static_cast<int>(Element::kHalf)] = narrow_loop<Half>;
  loops.narrow[static_cast<int>(Element::kBfloat16)] = narrow_loop<Bfloat16>;
  // In the order of Element.
  const ReduceLoops sums[] = {
      sum_loops<float>(),         sum_loops<double>(),
      sum_loops<Half>(),          sum_loops<Bfloat16>(),
      sum_loops<std::uint8_t>(),  sum_loops<std::uint8_t>(),
      sum_loops<std::uint32_t>(), sum_loops<std::uint64_t>()};
  const ReduceLoops maxima[] = {
      max_loops<float>(),        max_loops<double>(),
      max_loops<Half>(),         max_loops<Bfloat16>(),
      max_loops<std::int8_t>(),  max_loops<std::uint8_t>(),
      max_loops<std::int32_t>(), max_loops<std::int64_t>()};
  for (int i = 0; i < kNumElements; ++i) {
    loops.sum[i] = sums[i];
    loops.max[i] = maxima[i];
  }
  ScaledLoop to[kNumFloatElements][kNumFloatElements] = {};
  fill_row<float>(to[0], loops.accumulate[0]);
  fill_row<double>(to[1], loops.accumulate[1]);
  fill_row<Half>(to[2], loops.accumulate[2]);
  fill_row<Bfloat16>(to[3], loops.accumulate[3]);
  for (int i = 0; i < kNumFloatElements; ++i) {
    for (int j = 0; j < kNumFloatElements; ++j) {
      loops.scaled_cast[i][j] = to[j][i];
    }
  }
  loops.square[0] = square_loop<float>;
  loops.square[1] = square_loop<double>;
  loops.square[2] = square_loop<Half>;
  loops.square[3] = square_loop<Bfloat16>;
  loops.optimizer[0] = optimizer_loops<float>();
  loops.optimizer[1] = optimizer_loops<double>();
  loops.range = range_loop;
  loops.quantize_8_bits = {encode_8_loop, decode_8_loop};
  loops.quantize_4_bits = {encode_4_loop, decode_4_loop};
  loops.stream = stream_loop;
  loops.finish_stream = finish_stream;
  return loops;
}

}  // namespace

extern constexpr Loops NFOLD_LOOPS_NAME = make_loops();

}  // namespace nfold::kernels
