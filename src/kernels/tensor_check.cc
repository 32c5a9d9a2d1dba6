#include "kernels/tensor_check.h"

#include <c10/util/Exception.h>

namespace nfold::kernels {

Element checked_element(const at::Tensor& tensor, const char* kernel,
                        const char* argument) {
  TORCH_CHECK_VALUE(tensor.defined(), kernel, ": ", argument,
                    " is an undefined tensor");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.device().is_cpu(),
                    kernel, ": ", argument,
                    ": expected a dense CPU tensor but found layout ",
                    tensor.layout(), " on ", tensor.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), kernel, ": ", argument,
                    ": expected a contiguous tensor but found sizes ",
                    tensor.sizes(), " with strides ", tensor.strides(),
                    "; pass contiguous()");
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Element::kFloat;
    case at::kDouble:
      return Element::kDouble;
    case at::kHalf:
      return Element::kHalf;
    case at::kBFloat16:
      return Element::kBfloat16;
    case at::kChar:
      return Element::kInt8;
    case at::kByte:
      return Element::kUint8;
    case at::kInt:
      return Element::kInt32;
    case at::kLong:
      return Element::kInt64;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, kernel, ": ", argument, ": dtype ", tensor.scalar_type(),
          " is not supported; convert to float32, float64, float16, "
          "bfloat16, int8, uint8, int32 or int64");
  }
}

Element checked_float_element(const at::Tensor& tensor, const char* kernel,
                              const char* argument) {
  const Element element = checked_element(tensor, kernel, argument);
  TORCH_CHECK_NOT_IMPLEMENTED(
      static_cast<int>(element) < kNumFloatElements, kernel, ": ", argument,
      ": dtype ", tensor.scalar_type(),
      " is not supported; convert to float32, float64, float16 or bfloat16");
  return element;
}

void check_numel(const at::Tensor& tensor, std::int64_t numel,
                 const char* kernel, const char* argument) {
  TORCH_CHECK_VALUE(tensor.numel() == numel, kernel, ": ", argument,
                    ": expected ", numel, " elements but found ",
                    tensor.numel());
}

std::int64_t bytes_of(Element element) {
  switch (element) {
    case Element::kInt8:
    case Element::kUint8:
      return 1;
    case Element::kHalf:
    case Element::kBfloat16:
      return 2;
    case Element::kFloat:
    case Element::kInt32:
      return 4;
    case Element::kDouble:
    case Element::kInt64:
      return 8;
  }
  return 0;
}

}  // namespace nfold::kernels
