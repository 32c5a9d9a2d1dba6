#include "fetch/typed_operators.h"

#include <ATen/Operators.h>
#include <ATen/core/boxing/impl/boxing.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "fetch/operator_kind.h"
#include "fetch/sharded_arguments.h"
#include "param/dispatch_fallback.h"

namespace nfold {
namespace {

template <typename Op>
const c10::OperatorHandle& handle_of() {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(
      Op::name, Op::overload_name);
  return handle;
}

c10::DispatchKeySet below_interception(c10::DispatchKeySet keys) {
  return keys &
         c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kInterceptionKey);
}

// Op is a struct of at::_ops. No argument is written to, and no result shares
// memory with one, unless the operator needs no data at all.
template <typename Op, typename Signature = typename Op::schema>
struct Typed;

template <typename Op, typename Return, typename... Args>
struct Typed<Op, Return(Args...)> {
  static Return boxed(c10::DispatchKeySet keys, Args... args) {
    torch::jit::Stack stack = c10::impl::boxArgs<Args...>(args...);
    run_fallback(handle_of<Op>(), keys, &stack);
    return c10::impl::PopResult<Return>::call(stack);
  }

  static Return view(c10::DispatchKeySet keys, Args... args) {
    if (is_recording_here()) return boxed(keys, args...);
    return Op::redispatch(below_interception(keys), args...);
  }

  static Return compute(c10::DispatchKeySet keys, Args... args) {
    if (is_recording_here()) return boxed(keys, args...);
    ShardedArguments arguments(handle_of<Op>());
    (arguments.visit(args), ...);
    if (arguments.is_empty()) {
      return Op::redispatch(below_interception(keys), args...);
    }
    warn_of_autocast(*arguments.units().front());
    const AccessPin pin(arguments.handler(), arguments.units());
    const c10::impl::ExcludeDispatchKeyGuard guard(kInterceptionKey);
    return Op::redispatch(below_interception(keys), args...);
  }
};

std::string name_of(const char* name, const char* overload) {
  return *overload == '\0' ? name : std::string(name) + "." + overload;
}

template <typename... Ops>
void register_computing(torch::Library& library) {
  (library.impl(name_of(Ops::name, Ops::overload_name).c_str(),
                TORCH_FN((Typed<Ops>::compute))),
   ...);
}

template <typename... Ops>
void register_views(torch::Library& library) {
  (library.impl(name_of(Ops::name, Ops::overload_name).c_str(),
                TORCH_FN((Typed<Ops>::view))),
   ...);
}

}  // namespace

void register_typed_operators() {
  // Never destroyed: operators may run while the process ends. Kept in a
  // variable that the compiler may not drop, or leak checkers find it lost.
  [[gnu::used]] static torch::Library* const library = [] {
    auto* made = new torch::Library(torch::Library::IMPL, "aten",
                                    kInterceptionKey, __FILE__, __LINE__);
    using namespace at::_ops;  // NOLINT: names of operators, nothing else
    register_computing<add_Tensor, sub_Tensor, mul_Tensor, div_Tensor,
                       add_Scalar, mul_Scalar, neg, sum, sum_dim_IntList,
                       matmul, linear, mm, addmm, bmm, baddbmm, mv, addmv, dot,
                       embedding, layer_norm, native_layer_norm,
                       native_layer_norm_backward>(*made);
    register_views<conj, view, t, transpose_int, permute, expand, unsqueeze,
                   squeeze_dim, select_int, slice_Tensor, detach, alias,
                   as_strided>(*made);
    return made;
  }();
}

}  // namespace nfold
