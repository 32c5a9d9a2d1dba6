#include "kernels/cast_copy.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstring>

#include "kernels/simd.h"
#include "kernels/tensor_check.h"

namespace nfold::kernels {
namespace {

constexpr std::int64_t kGrainNumel = 32768;
constexpr std::int64_t kGrainBytes = 4 * kGrainNumel;

void copy_bytes(void* to, const void* from, std::int64_t num_bytes) {
  at::parallel_for(
      0, num_bytes, kGrainBytes, [&](std::int64_t begin, std::int64_t end) {
        std::memcpy(static_cast<std::byte*>(to) + begin,
                    static_cast<const std::byte*>(from) + begin, end - begin);
      });
}

void run_scaled(ScaledLoop loop, const at::Tensor& out, const at::Tensor& x,
                float scale) {
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  const auto* from = static_cast<const std::byte*>(x.const_data_ptr());
  const std::int64_t to_bytes = out.element_size();
  const std::int64_t from_bytes = x.element_size();
  at::parallel_for(0, out.numel(), kGrainNumel,
                   [&](std::int64_t begin, std::int64_t end) {
                     loop(to + begin * to_bytes, from + begin * from_bytes,
                          scale, end - begin);
                   });
}

}  // namespace

void scaled_cast(at::Tensor destination, const at::Tensor& source,
                 float scale) {
  const char* kernel = "scaled_cast";
  checked_element(destination, kernel, "destination");
  checked_element(source, kernel, "source");
  check_numel(source, destination.numel(), kernel, "source");
  if (scale == 1.0F && destination.scalar_type() == source.scalar_type()) {
    if (destination.const_data_ptr() != source.const_data_ptr()) {
      copy_bytes(destination.mutable_data_ptr(), source.const_data_ptr(),
                 static_cast<std::int64_t>(source.nbytes()));
    }
    return;
  }
  const Element to = checked_float_element(destination, kernel, "destination");
  const Element from = checked_float_element(source, kernel, "source");
  run_scaled(loops().scaled_cast[static_cast<int>(from)][static_cast<int>(to)],
             destination, source, scale);
}

void accumulate(at::Tensor accumulator, const at::Tensor& x, float scale) {
  const char* kernel = "accumulate";
  const Element to = checked_float_element(accumulator, kernel, "accumulator");
  const Element from = checked_float_element(x, kernel, "x");
  check_numel(x, accumulator.numel(), kernel, "x");
  run_scaled(loops().accumulate[static_cast<int>(to)][static_cast<int>(from)],
             accumulator, x, scale);
}

}  // namespace nfold::kernels
