// File: quantize_loops.inc.h
//
// Part of loops.inc.h: codes of 8 and 4 bits for a block of floats.

namespace nfold::kernels {
namespace {

// Of all floats, NaN included, in the order of their values.
NFOLD_INLINE std::int32_t order_of(float x) {
  const auto bits = static_cast<std::int32_t>(bits_of(x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

OrderedRange range_loop(const float* x, std::int64_t numel) {
  std::int32_t lowest = 0x7fffffff;
  std::int32_t highest = -0x7fffffff - 1;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::int32_t order = order_of(x[i]);
    lowest = order < lowest ? order : lowest;
    highest = order > highest ? order : highest;
  }
  return {lowest, highest};
}

// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the
// low bits.
NFOLD_INLINE std::uint8_t code_of(float x, const CodeScalars& scalars) {
  float level = (x - scalars.offset) * scalars.inverse;
  level = level < scalars.lowest ? scalars.lowest : level;
  level = level > scalars.highest ? scalars.highest : level;
  const auto bias =
      static_cast<std::uint32_t>(static_cast<std::int32_t>(scalars.lowest));
  return static_cast<std::uint8_t>(bits_of(level + 0x1.8p23f) - bias);
}

NFOLD_INLINE float value_of(std::uint32_t code, const CodeScalars& scalars) {
  const auto level = static_cast<float>(static_cast<std::int32_t>(code));
  return (level + scalars.lowest) * scalars.step + scalars.offset;
}

void encode_8_loop(std::uint8_t* codes, const float* x, std::int64_t numel,
                   const CodeScalars& scalars) {
  const CodeScalars local = scalars;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) codes[i] = code_of(x[i], local);
}

void decode_8_loop(float* x, const std::uint8_t* codes, std::int64_t numel,
                   const CodeScalars& scalars) {
  const CodeScalars local = scalars;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel; ++i) x[i] = value_of(codes[i], local);
}

void encode_4_loop(std::uint8_t* codes, const float* x, std::int64_t numel,
                   const CodeScalars& scalars) {
  const CodeScalars local = scalars;
  const std::int64_t half = (numel + 1) / 2;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel - half; ++i) {
    const unsigned low = code_of(x[i], local);
    const unsigned high = code_of(x[i + half], local);
    codes[i] = static_cast<std::uint8_t>(low | (high << 4));
  }
  if (numel % 2 != 0) codes[half - 1] = code_of(x[half - 1], local);
}

void decode_4_loop(float* x, const std::uint8_t* codes, std::int64_t numel,
                   const CodeScalars& scalars) {
  const CodeScalars local = scalars;
  const std::int64_t half = (numel + 1) / 2;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < numel - half; ++i) {
    x[i] = value_of(codes[i] & 0xfu, local);
    x[i + half] = value_of(codes[i] >> 4, local);
  }
  if (numel % 2 != 0) x[half - 1] = value_of(codes[half - 1] & 0xfu, local);
}

}  // namespace
}  // namespace nfold::kernels
