#include "param/deferred_history.h"

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace nfold {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOperator = "operator";

variable_list refuse(AutogradContext* context) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      "deferred construction: a tensor that a constructor has made with ",
      context->saved_data[kOperator].toStringRef(),
      " from one that requires a gradient has no history, because the operator "
      "ran later; make it in forward, or detach it in the constructor");
  return {};
}

// Hides a tensor from apply(), for which it would be an input.
struct Result {
  at::Tensor tensor;
};

struct DeferredFunction : torch::autograd::Function<DeferredFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor&,
                            const Result& result, const std::string& name) {
    context->saved_data[kOperator] = name;
    return result.tensor;
  }
  static variable_list backward(AutogradContext* context, variable_list) {
    return refuse(context);
  }
};

struct DeferredInPlaceFunction
    : torch::autograd::Function<DeferredInPlaceFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor&,
                            const at::Tensor& result, const std::string& name) {
    context->saved_data[kOperator] = name;
    context->mark_dirty({result});
    return result;
  }
  static variable_list backward(AutogradContext* context, variable_list) {
    return refuse(context);
  }
};

}  // namespace

void give_history(const at::Tensor& result, const at::Tensor& source,
                  const std::string& operator_name) {
  DeferredFunction::apply(source, Result{result}, operator_name);
}

void give_in_place_history(const at::Tensor& result, const at::Tensor& source,
                           const std::string& operator_name) {
  DeferredInPlaceFunction::apply(source, result, operator_name);
}

void check_in_place(const at::Tensor& tensor, bool needs_history) {
  torch::autograd::check_inplace(tensor, needs_history);
}

}  // namespace nfold
