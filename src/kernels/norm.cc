#include "kernels/norm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels/non_finite.h"
#include "kernels/simd.h"
#include "kernels/tensor_check.h"

namespace nfold::kernels {
namespace {

constexpr std::int64_t kGrainBlocks = 16;

}  // namespace

NormResult norm_squared(const at::Tensor& x) {
  const Element element = checked_float_element(x, "norm_squared", "x");
  const auto* data = static_cast<const std::byte*>(x.const_data_ptr());
  const std::int64_t numel = x.numel();
  const std::int64_t num_blocks =
      (numel + kNormBlockNumel - 1) / kNormBlockNumel;
  const SquareLoop square = loops().square[static_cast<int>(element)];
  const auto block = [&](std::int64_t index) {
    return data + index * kNormBlockNumel * bytes_of(element);
  };
  const auto block_numel = [&](std::int64_t index) {
    return std::min(kNormBlockNumel, numel - index * kNormBlockNumel);
  };
  std::vector<CompensatedSum> sums(static_cast<std::size_t>(num_blocks));
  at::parallel_for(
      0, num_blocks, kGrainBlocks, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          sums[static_cast<std::size_t>(i)] = square(block(i), block_numel(i));
        }
      });
  NormResult result;
  for (const auto& sum : sums) result.sum_of_squares.add(sum);
  if (!std::isfinite(result.sum_of_squares.high)) {
    result.first_non_finite = first_non_finite(x.view(-1));
  }
  return result;
}

}  // namespace nfold::kernels
