// File: sharded_arguments.h
//
// Which sharded units an operator has among its arguments, for the two ways in
// which dispatch_interceptor.h sees operators: boxed, all of them, and typed,
// those of typed_operators.h.
//
//   ShardedArguments arguments(op);
//   arguments.visit(weight);
//   if (!arguments.is_empty()) {
//     const AccessPin pin(arguments.handler(), arguments.units());
//     ...
//
// On the path of every operator with a marked argument, so it allocates
// nothing.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <string>

#include "fetch/dispatch_interceptor.h"
#include "param/dispatch_fallback.h"

namespace nfold {

// Undefined tensors have none.
inline bool has_interception_key(const at::Tensor& tensor) {
  return tensor.defined() && tensor.key_set().has(kInterceptionKey);
}

class ShardedArguments {
 public:
  explicit ShardedArguments(const c10::OperatorHandle& op) : op_(op) {}
  ShardedArguments(const c10::OperatorHandle& op,
                   const torch::jit::Stack& stack);

  // Raises c10::ValueError for an argument that is written to outside of a
  // scope, and for units of two engines.
  void visit(const at::Tensor& tensor) {
    if (has_interception_key(tensor)) add(tensor);
  }
  void visit(const std::optional<at::Tensor>& tensor) {
    if (tensor) visit(*tensor);
  }
  template <typename Other>
  void visit(const Other& /*not_a_tensor*/) {}

  bool is_empty() const { return units_.empty(); }
  AccessHandler& handler() const { return *handler_; }
  UnitRefs units() const { return units_; }

 private:
  void visit_value(const c10::IValue& value);
  void add(const at::Tensor& tensor);

  const c10::OperatorHandle& op_;
  bool is_written_ = false;  // of the argument being visited
  AccessHandler* handler_ = nullptr;
  UnitList units_;
};

// The parameter of the unit that the tensor is, or is a part of.
std::string param_name(const ShardedUnit& unit, const at::Tensor& tensor);

// Once per process, if autocast is on.
void warn_of_autocast(const ShardedUnit& unit);

}  // namespace nfold
