#include "comm/c10d_reduction.h"

#include <c10/util/Exception.h>

namespace nfold {
namespace {

using Operation = c10d::ReduceOp::RedOpType;

const char* word_for(Operation op) {
  switch (op) {
    case Operation::SUM:
      return "SUM";
    case Operation::AVG:
      return "AVG";
    case Operation::PRODUCT:
      return "PRODUCT";
    case Operation::MIN:
      return "MIN";
    case Operation::MAX:
      return "MAX";
    case Operation::BAND:
      return "BAND";
    case Operation::BOR:
      return "BOR";
    case Operation::BXOR:
      return "BXOR";
    case Operation::PREMUL_SUM:
      return "PREMUL_SUM";
    case Operation::UNUSED:
      break;
  }
  return "an unknown operation";
}

}  // namespace

C10dReduction::C10dReduction(const c10d::ReduceOp& op, c10::ScalarType dtype,
                             int num_ranks)
    : is_bool_(dtype == c10::ScalarType::Bool) {
  const Operation wanted = op;
  switch (wanted) {
    case Operation::SUM:
      op_ = is_bool_ ? ReduceOp::kMax : ReduceOp::kSum;
      return;
    case Operation::MAX:
      op_ = ReduceOp::kMax;
      return;
    case Operation::MIN:
      op_ = ReduceOp::kMax;
      is_minimum_ = true;
      return;
    case Operation::AVG:
      TORCH_CHECK_NOT_IMPLEMENTED(
          c10::isFloatingType(dtype), "the average of ", dtype,
          " is not implemented; use SUM, or floating-point numbers");
      divisor_ = num_ranks;
      return;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "the reduction ", word_for(wanted),
          " is not implemented; use SUM, AVG, MIN or MAX, or a Gloo backend");
  }
}

at::Tensor C10dReduction::raw(const at::Tensor& tensor) const {
  return is_bool_ ? tensor.view(at::kByte) : tensor;
}

at::Tensor C10dReduction::prepared(const at::Tensor& tensor) const {
  const at::Tensor values = raw(tensor);
  if (!is_minimum_) return values;
  return values.is_floating_point() ? values.neg() : values.bitwise_not();
}

void C10dReduction::finish(const at::Tensor& result) const {
  if (divisor_ != 1) result.div_(divisor_);
  if (!is_minimum_) return;
  if (result.is_floating_point()) {
    result.neg_();
  } else {
    result.bitwise_not_();
  }
}

}  // namespace nfold
