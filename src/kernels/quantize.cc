#include "kernels/quantize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/simd.h"
#include "kernels/tensor_check.h"

namespace nfold {
namespace kernels {
namespace {

constexpr std::int64_t kCodedBlocks = 128;
constexpr float kSmallestStep = 0x1p-126F;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Where the parts of encoded numbers lie.
class Encoding {
 public:
  Encoding(std::int64_t numel, const BlockCodec& codec)
      : numel_(numel), codec_(codec) {
    TORCH_CHECK_VALUE(codec.bits == 8 || codec.bits == 4,
                      "BlockCodec::bits: expected 8 or 4 but found ",
                      codec.bits);
    TORCH_CHECK_VALUE(
        codec.block_numel >= 1 && codec.block_numel <= kMaxBlockNumel,
        "BlockCodec::block_numel: expected 1 to ", kMaxBlockNumel,
        " but found ", codec.block_numel);
    TORCH_CHECK_VALUE(numel >= 0, "expected a number of elements but found ",
                      numel);
    num_blocks_ = ceil_div(numel, codec.block_numel);
    header_numel_ = codec.is_symmetric ? 1 : 2;
    code_bytes_ = bytes_of_codes(codec.block_numel);
    codes_begin_ = num_blocks_ * header_numel_ * 4;
    const auto last =
        numel - std::max<std::int64_t>(num_blocks_ - 1, 0) * codec.block_numel;
    end_ = codes_begin_ + bytes_of_codes(last);
    if (num_blocks_ > 0) end_ += (num_blocks_ - 1) * code_bytes_;
    bytes_ = ceil_div(end_, 4) * 4;
  }

  std::int64_t numel() const { return numel_; }
  std::int64_t num_blocks() const { return num_blocks_; }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t begin(std::int64_t block) const {
    return block * codec_.block_numel;
  }
  std::int64_t numel_of(std::int64_t block) const {
    return std::min(codec_.block_numel, numel_ - begin(block));
  }
  float* header(std::uint8_t* encoded, std::int64_t block) const {
    return reinterpret_cast<float*>(encoded) + block * header_numel_;
  }
  const float* header(const std::uint8_t* encoded, std::int64_t block) const {
    return reinterpret_cast<const float*>(encoded) + block * header_numel_;
  }
  std::int64_t num_headers() const { return num_blocks_ * header_numel_; }
  std::int64_t codes_at(std::int64_t block) const {
    return codes_begin_ + block * code_bytes_;
  }
  std::int64_t bytes_of_codes(std::int64_t numel) const {
    return codec_.bits == 8 ? numel : ceil_div(numel, 2);
  }
  // Equal messages have equal bytes, those behind the last code included.
  void clear_padding(std::uint8_t* encoded) const {
    std::fill(encoded + end_, encoded + bytes_, std::uint8_t{0});
  }

 private:
  std::int64_t numel_;
  BlockCodec codec_;
  std::int64_t num_blocks_;
  std::int64_t header_numel_;
  std::int64_t code_bytes_;  // of a full block
  std::int64_t codes_begin_;
  std::int64_t end_;
  std::int64_t bytes_;
};

float float_of_order(std::int32_t order) {
  return std::bit_cast<float>(order ^ ((order >> 31) & 0x7fffffff));
}

bool is_finite(const OrderedRange& range) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  return range.highest < kInfinity && range.lowest > -kInfinity - 1;
}

float away_from_zero(float step) {
  return std::fabs(step) < kSmallestStep ? std::copysign(kSmallestStep, step)
                                         : step;
}

// Codes one block at a time.
class BlockCoder {
 public:
  explicit BlockCoder(const BlockCodec& codec)
      : codec_(codec),
        range_(loops().range),
        coding_(codec.bits == 8 ? loops().quantize_8_bits
                                : loops().quantize_4_bits) {
    const auto levels = static_cast<float>(1 << codec.bits);
    lowest_ = codec.is_symmetric ? -levels / 2 : 0;
    highest_ = lowest_ + levels - 1;
  }

  // False if the block is not finite.
  bool encode(float* header, std::uint8_t* codes, std::int64_t code_bytes,
              const float* x, std::int64_t numel) const {
    const bool is_coded = write_header(header, range_(x, numel));
    if (is_coded) {
      coding_.encode(codes, x, numel, scalars(header));
    } else {
      std::memset(codes, 0, static_cast<std::size_t>(code_bytes));
    }
    return is_coded;
  }

  void decode(float* x, const float* header, const std::uint8_t* codes,
              std::int64_t numel) const {
    coding_.decode(x, codes, numel, scalars(header));
  }

 private:
  CodeScalars scalars(const float* header) const {
    return {.offset = codec_.is_symmetric ? 0 : header[1],
            .inverse = 1 / header[0],
            .step = header[0],
            .lowest = lowest_,
            .highest = highest_};
  }

  bool write_header(float* header, const OrderedRange& range) const {
    const float low = float_of_order(range.lowest);
    const float high = float_of_order(range.highest);
    bool is_coded = is_finite(range);
    float step = 0;
    if (codec_.is_symmetric) {
      step = (high > -low ? high : low) / lowest_;
    } else {
      step = (high - low) / highest_;
      is_coded = is_coded && std::isfinite(step);
      header[1] = low;
    }
    header[0] = is_coded ? away_from_zero(step)
                         : std::numeric_limits<float>::quiet_NaN();
    return is_coded;
  }

  BlockCodec codec_;
  OrderedRange (*range_)(const float*, std::int64_t);
  QuantizeLoops coding_;
  float lowest_;
  float highest_;
};

// Elements of a tensor as floats, a block at a time.
class FloatBlocks {
 public:
  FloatBlocks(const at::Tensor& tensor, const char* kernel,
              const char* argument) {
    const Element element = checked_float_element(tensor, kernel, argument);
    TORCH_CHECK_NOT_IMPLEMENTED(element != Element::kDouble, kernel, ": ",
                                argument,
                                ": expected fp32, fp16 or bf16 but found fp64");
    widen_ = loops().widen[static_cast<int>(element)];
    narrow_ = loops().narrow[static_cast<int>(element)];
    item_bytes_ = tensor.element_size();
  }

  // `scratch` or the elements themselves.
  const float* read(const void* data, std::int64_t begin, std::int64_t numel,
                    float* scratch) const {
    const auto* from =
        static_cast<const std::byte*>(data) + begin * item_bytes_;
    if (widen_ == nullptr) return reinterpret_cast<const float*>(from);
    widen_(scratch, from, numel);
    return scratch;
  }
  // Where to put the elements before `write`.
  float* place(void* data, std::int64_t begin, float* scratch) const {
    return narrow_ == nullptr ? static_cast<float*>(data) + begin : scratch;
  }
  void write(void* data, std::int64_t begin, std::int64_t numel,
             const float* placed) const {
    if (narrow_ == nullptr) return;
    narrow_(static_cast<std::byte*>(data) + begin * item_bytes_, placed, numel);
  }

 private:
  UnaryLoop widen_;
  UnaryLoop narrow_;
  std::int64_t item_bytes_;
};

void check_encoded(const at::Tensor& encoded, std::int64_t num_bytes,
                   const char* kernel, const char* argument) {
  const Element element = checked_element(encoded, kernel, argument);
  TORCH_CHECK_VALUE(element == Element::kUint8, kernel, ": ", argument,
                    ": expected uint8 but found ", encoded.scalar_type());
  check_numel(encoded, num_bytes, kernel, argument);
  TORCH_CHECK_VALUE(
      reinterpret_cast<std::uintptr_t>(encoded.const_data_ptr()) % 4 == 0,
      kernel, ": ", argument,
      ": expected it to begin at a multiple of 4 bytes");
}

// ((0 + 1) + (2 + 3)) + 4, as sum_tree.h.
void add_rows(float* rows, std::size_t num_rows, std::int64_t row_numel,
              std::int64_t numel) {
  const auto add = loops().sum[static_cast<int>(Element::kFloat)].of_wide;
  for (std::size_t width = 1; width < num_rows; width *= 2) {
    for (std::size_t row = 0; row + width < num_rows; row += 2 * width) {
      float* to = rows + static_cast<std::int64_t>(row) * row_numel;
      add(to, to, to + static_cast<std::int64_t>(width) * row_numel, numel);
    }
  }
}

}  // namespace

void quantize(at::Tensor encoded, const at::Tensor& x,
              const BlockCodec& codec) {
  const char* kernel = "quantize";
  const FloatBlocks blocks(x, kernel, "x");
  const Encoding encoding(x.numel(), codec);
  check_encoded(encoded, encoding.bytes(), kernel, "encoded");
  const BlockCoder coder(codec);
  const void* from = x.const_data_ptr();
  auto* to = encoded.mutable_data_ptr<std::uint8_t>();
  at::parallel_for(
      0, encoding.num_blocks(), kCodedBlocks,
      [&](std::int64_t first, std::int64_t last) {
        float scratch[kMaxBlockNumel];
        for (std::int64_t block = first; block < last; ++block) {
          const auto numel = encoding.numel_of(block);
          const float* values =
              blocks.read(from, encoding.begin(block), numel, scratch);
          coder.encode(encoding.header(to, block),
                       to + encoding.codes_at(block),
                       encoding.bytes_of_codes(numel), values, numel);
        }
      });
  encoding.clear_padding(to);
}

void dequantize(at::Tensor out, const at::Tensor& encoded,
                const BlockCodec& codec) {
  const char* kernel = "dequantize";
  const FloatBlocks blocks(out, kernel, "out");
  const Encoding encoding(out.numel(), codec);
  check_encoded(encoded, encoding.bytes(), kernel, "encoded");
  const BlockCoder coder(codec);
  const auto* from = encoded.const_data_ptr<std::uint8_t>();
  void* to = out.mutable_data_ptr();
  at::parallel_for(0, encoding.num_blocks(), kCodedBlocks,
                   [&](std::int64_t first, std::int64_t last) {
                     float scratch[kMaxBlockNumel];
                     for (std::int64_t block = first; block < last; ++block) {
                       const auto begin = encoding.begin(block);
                       const auto numel = encoding.numel_of(block);
                       float* values = blocks.place(to, begin, scratch);
                       coder.decode(values, encoding.header(from, block),
                                    from + encoding.codes_at(block), numel);
                       blocks.write(to, begin, numel, values);
                     }
                   });
}

void dequantize_sum(at::Tensor out, at::ArrayRef<at::Tensor> encoded,
                    const BlockCodec& codec) {
  const char* kernel = "dequantize_sum";
  const FloatBlocks blocks(out, kernel, "out");
  const Encoding encoding(out.numel(), codec);
  TORCH_CHECK_VALUE(!encoded.empty(), kernel,
                    ": expected at least one input but found none");
  std::vector<const std::uint8_t*> from;
  for (std::size_t i = 0; i < encoded.size(); ++i) {
    const std::string argument = "encoded[" + std::to_string(i) + "]";
    check_encoded(encoded[i], encoding.bytes(), kernel, argument.c_str());
    from.push_back(encoded[i].const_data_ptr<std::uint8_t>());
  }
  const BlockCoder coder(codec);
  void* to = out.mutable_data_ptr();
  at::parallel_for(
      0, encoding.num_blocks(), kCodedBlocks,
      [&](std::int64_t first, std::int64_t last) {
        std::vector<float> rows(from.size() *
                                static_cast<std::size_t>(codec.block_numel));
        for (std::int64_t block = first; block < last; ++block) {
          const auto begin = encoding.begin(block);
          const auto numel = encoding.numel_of(block);
          float* row = rows.data();
          for (const auto* input : from) {
            coder.decode(row, encoding.header(input, block),
                         input + encoding.codes_at(block), numel);
            row += codec.block_numel;
          }
          add_rows(rows.data(), from.size(), codec.block_numel, numel);
          float* sums = blocks.place(to, begin, rows.data());
          if (sums != rows.data()) {
            std::copy_n(rows.data(), numel, sums);
          }
          blocks.write(to, begin, numel, sums);
        }
      });
}

BlockCodec error_codec_of(const BlockCodec& codec) {
  return {.bits = 8, .is_symmetric = true, .block_numel = codec.block_numel};
}

void quantize_with_feedback(at::Tensor encoded, at::Tensor error,
                            const at::Tensor& x, const BlockCodec& codec,
                            float beta) {
  const char* kernel = "quantize_with_feedback";
  const FloatBlocks blocks(x, kernel, "x");
  const Encoding encoding(x.numel(), codec);
  const BlockCodec error_codec = error_codec_of(codec);
  const Encoding error_encoding(x.numel(), error_codec);
  check_encoded(encoded, encoding.bytes(), kernel, "encoded");
  check_encoded(error, error_encoding.bytes(), kernel, "error");
  const BlockCoder coder(codec);
  const BlockCoder error_coder(error_codec);
  const void* from = x.const_data_ptr();
  auto* to = encoded.mutable_data_ptr<std::uint8_t>();
  auto* errors = error.mutable_data_ptr<std::uint8_t>();
  const float rest = 1 - beta;
  at::parallel_for(
      0, encoding.num_blocks(), kCodedBlocks,
      [&](std::int64_t first, std::int64_t last) {
        float scratch[kMaxBlockNumel];
        float wanted[kMaxBlockNumel];
        float kept[kMaxBlockNumel];
        for (std::int64_t block = first; block < last; ++block) {
          const auto numel = encoding.numel_of(block);
          const float* values =
              blocks.read(from, encoding.begin(block), numel, scratch);
          float* error_header = error_encoding.header(errors, block);
          auto* error_codes = errors + error_encoding.codes_at(block);
          float* header = encoding.header(to, block);
          auto* codes = to + encoding.codes_at(block);
          error_coder.decode(kept, error_header, error_codes, numel);
          for (std::int64_t i = 0; i < numel; ++i) {
            wanted[i] = values[i] + kept[i];
          }
          if (!coder.encode(header, codes, encoding.bytes_of_codes(numel),
                            wanted, numel)) {
            std::memset(error_codes, 0, static_cast<std::size_t>(numel));
            *error_header = 0;
            continue;
          }
          coder.decode(scratch, header, codes, numel);
          for (std::int64_t i = 0; i < numel; ++i) {
            kept[i] = beta * kept[i] + rest * (wanted[i] - scratch[i]);
          }
          error_coder.encode(error_header, error_codes, numel, kept, numel);
        }
      });
  encoding.clear_padding(to);
}

void scale_encoded(at::Tensor encoded, std::int64_t numel,
                   const BlockCodec& codec, float factor) {
  const Encoding encoding(numel, codec);
  check_encoded(encoded, encoding.bytes(), "scale_encoded", "encoded");
  float* headers = encoding.header(encoded.mutable_data_ptr<std::uint8_t>(), 0);
  for (std::int64_t i = 0; i < encoding.num_headers(); ++i) {
    headers[i] *= factor;
  }
}

}  // namespace kernels

std::int64_t encoded_bytes(std::int64_t numel, const BlockCodec& codec) {
  return kernels::Encoding(numel, codec).bytes();
}

at::Tensor quantized(const at::Tensor& x, const BlockCodec& codec) {
  auto encoded = at::empty({encoded_bytes(x.numel(), codec)}, at::kByte);
  kernels::quantize(encoded, x, codec);
  return encoded;
}

at::Tensor dequantized(const at::Tensor& encoded, std::int64_t numel,
                       at::ScalarType dtype, const BlockCodec& codec) {
  auto out = at::empty({numel}, dtype);
  kernels::dequantize(out, encoded, codec);
  return out;
}

}  // namespace nfold
