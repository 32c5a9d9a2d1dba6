#include "kernels/non_finite.h"

#include <c10/util/Exception.h>

namespace nfold::kernels {
namespace {

// A number is not finite exactly when all bits of its exponent are set. The
// inner loop has no branch, so that it vectorises on every instruction set.
template <typename Bits>
std::int64_t first_with(const Bits* bits, std::int64_t numel, Bits exponent) {
  constexpr std::int64_t kBlock = 4096;
  for (std::int64_t begin = 0; begin < numel; begin += kBlock) {
    const auto end = std::min(begin + kBlock, numel);
    Bits is_found = 0;
    for (auto i = begin; i < end; ++i) {
      is_found |= static_cast<Bits>((bits[i] & exponent) == exponent);
    }
    if (is_found == 0) continue;
    for (auto i = begin; i < end; ++i) {
      if ((bits[i] & exponent) == exponent) return i;
    }
  }
  return -1;
}

}  // namespace

std::int64_t first_non_finite(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 1 && x.is_contiguous() && x.device().is_cpu(),
                    "first_non_finite: expected a contiguous 1-D CPU tensor "
                    "but found sizes ",
                    x.sizes(), ", strides ", x.strides(), " on ", x.device());
  const auto* data = x.const_data_ptr();
  switch (x.scalar_type()) {
    case at::kFloat:
      return first_with(static_cast<const std::uint32_t*>(data), x.numel(),
                        std::uint32_t{0x7f800000});
    case at::kDouble:
      return first_with(static_cast<const std::uint64_t*>(data), x.numel(),
                        std::uint64_t{0x7ff0000000000000});
    case at::kHalf:
      return first_with(static_cast<const std::uint16_t*>(data), x.numel(),
                        std::uint16_t{0x7c00});
    case at::kBFloat16:
      return first_with(static_cast<const std::uint16_t*>(data), x.numel(),
                        std::uint16_t{0x7f80});
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false,
          "first_non_finite: expected fp32, fp64, fp16 or bf16 but found ",
          x.scalar_type());
  }
}

}  // namespace nfold::kernels
