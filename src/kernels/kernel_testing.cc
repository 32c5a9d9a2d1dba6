#include "kernels/kernel_testing.h"

#include <cmath>
#include <limits>

namespace nfold::kernels {
namespace {

double awkward_number(std::mt19937& random, bool with_non_finite) {
  std::uniform_real_distribution<double> mantissa(-2, 2);
  std::uniform_int_distribution<int> exponent(-30, 15);
  std::uniform_int_distribution<int> kind(0, 99);
  const double sign = random() % 2 == 0 ? 1 : -1;
  switch (kind(random)) {
    case 0:
      return sign * 0.0;
    case 1:
      return mantissa(random) * 0x1p-140;
    case 2:
      return mantissa(random) * 0x1p120;
    case 3:
      return with_non_finite ? sign * std::numeric_limits<double>::infinity()
                             : sign;
    case 4:
      return with_non_finite ? std::numeric_limits<double>::quiet_NaN() : sign;
    default:
      return std::ldexp(mantissa(random), exponent(random));
  }
}

at::Tensor bits_view(const at::Tensor& tensor) {
  switch (tensor.element_size()) {
    case 2:
      return tensor.view(at::kShort);
    case 4:
      return tensor.view(at::kInt);
    case 8:
      return tensor.view(at::kLong);
    default:
      return tensor;
  }
}

}  // namespace

at::Tensor awkward_tensor(std::int64_t numel, at::ScalarType dtype,
                          std::mt19937& random, bool with_non_finite) {
  at::Tensor numbers = at::empty({numel}, at::kDouble);
  auto* to = numbers.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < numel; ++i) {
    to[i] = awkward_number(random, with_non_finite);
  }
  if (!at::isIntegralType(dtype, false)) {
    // What is too large for the dtype becomes infinite in the conversion.
    at::Tensor converted = numbers.to(dtype);
    if (!with_non_finite) {
      converted.masked_fill_(converted.isinf(), 1);
    }
    return converted;
  }
  at::Tensor bits = at::empty({numel}, at::kLong);
  auto* bits_to = bits.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < numel; ++i) {
    bits_to[i] = static_cast<std::int64_t>(
        (static_cast<std::uint64_t>(random()) << 32) | random());
  }
  return bits.to(dtype);
}

bool is_bitwise_equal(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) {
    return false;
  }
  at::Tensor is_same = bits_view(a) == bits_view(b);
  if (at::isFloatingType(a.scalar_type())) {
    is_same = is_same | (a.isnan() & b.isnan());
  }
  return is_same.all().item<bool>();
}

}  // namespace nfold::kernels
