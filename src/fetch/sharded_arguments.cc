#include "fetch/sharded_arguments.h"

#include <ATen/core/ivalue.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <mutex>

#include "base/log.h"

namespace nfold {

ShardedArguments::ShardedArguments(const c10::OperatorHandle& op,
                                   const torch::jit::Stack& stack)
    : op_(op) {
  const auto& arguments = op.schema().arguments();
  const auto first = stack.size() - arguments.size();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    is_written_ = alias && alias->isWrite();
    visit_value(stack[first + i]);
  }
}

void ShardedArguments::visit_value(const c10::IValue& value) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& each : value.toTensorList()) visit(each);
  } else if (value.isList()) {
    for (const c10::IValue& each : value.toListRef()) visit_value(each);
  } else if (value.isTuple()) {
    for (const auto& each : value.toTupleRef().elements()) visit_value(each);
  } else if (value.isGenericDict()) {
    for (const auto& each : value.toGenericDict()) visit_value(each.value());
  }
}

void ShardedArguments::add(const at::Tensor& tensor) {
  const auto watched = dispatch_interceptor().find(tensor);
  if (!watched.unit) return;
  TORCH_CHECK_VALUE(
      !is_written_ || watched.is_writable, watched.handler->where(), ": ",
      op_.schema().name(), " writes to ", param_name(*watched.unit, tensor),
      ", which is sharded; the change would be lost. Write inside "
      "nfold::GatheredParameters with a modifier_rank, or with "
      "safe_set_full_fp32_param. (Embedding's max_norm renormalises its "
      "weight in forward: normalise it in such a scope after each step.)");
  for (const auto* unit : units_) {
    if (unit == watched.unit) return;
  }
  TORCH_CHECK_VALUE(!handler_ || handler_ == watched.handler,
                    op_.schema().name(), " uses ",
                    param_name(*watched.unit, tensor), " of one engine and ",
                    units_.empty() ? "" : units_.front()->params().front().name,
                    " of another; gather one of them first with "
                    "nfold::GatheredParameters and pass a clone");
  handler_ = watched.handler;
  units_.push_back(watched.unit);
}

// The parameter of the unit that the tensor is, or is a part of.
std::string param_name(const ShardedUnit& unit, const at::Tensor& tensor) {
  const auto offset = tensor.storage_offset();
  for (std::size_t i = 0; i < unit.params().size(); ++i) {
    const auto range = unit.layout().param_range(i);
    if (offset >= range.begin && offset < range.begin + range.numel) {
      return unit.params()[i].name;
    }
  }
  return unit.params().front().name;
}

void warn_of_autocast(const ShardedUnit& unit) {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  if (!keys.has(c10::DispatchKey::AutocastCPU)) return;
  static std::once_flag once;
  std::call_once(once, [&] {
    log_warning(
        "autocast is on around sharded parameters: it saves a cast copy of "
        "each for backward ({} bytes for {} alone), which stays whole until "
        "then. Set bf16 or fp16 in the configuration instead.",
        unit.layout().numel() * 2, unit.name());
  });
}

}  // namespace nfold
