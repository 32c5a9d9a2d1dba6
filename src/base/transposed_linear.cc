#include "nfold/transposed_linear.h"

#include <ATen/ATen.h>

#include "nfold/errors.h"

namespace nfold {

at::Tensor transpose_in_storage(const at::Tensor& matrix) {
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.is_contiguous(),
                    "transpose_in_storage: expected a contiguous matrix but "
                    "found sizes ",
                    matrix.sizes(), " and strides ", matrix.strides());
  const auto values = matrix.detach();
  const auto result = values.view({matrix.size(1), matrix.size(0)});
  result.copy_(values.t().clone(at::MemoryFormat::Contiguous));
  return result;
}

TransposedLinearImpl::TransposedLinearImpl(const at::Tensor& transposed_weight,
                                           const at::Tensor& given_bias) {
  TORCH_CHECK_VALUE(transposed_weight.dim() == 2,
                    "TransposedLinear: weight: expected [in, out] but found ",
                    transposed_weight.sizes());
  TORCH_CHECK_VALUE(
      !given_bias.defined() ||
          given_bias.sizes() == transposed_weight.sizes().slice(1),
      "TransposedLinear: bias: expected [", transposed_weight.size(1),
      "] but found ", given_bias.defined() ? c10::str(given_bias.sizes()) : "");
  weight = register_parameter(
      "weight", transposed_weight.detach().t().contiguous().clone(),
      transposed_weight.requires_grad());
  if (given_bias.defined()) {
    bias = register_parameter("bias", given_bias, given_bias.requires_grad());
  }
}

at::Tensor TransposedLinearImpl::forward(const at::Tensor& input) const {
  return at::linear(input, weight, bias);
}

}  // namespace nfold
