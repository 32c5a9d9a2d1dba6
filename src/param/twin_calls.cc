#include "param/twin_calls.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/clone.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "param/deferred_storage.h"
#include "param/dispatch_fallback.h"
#include "param/tensor_walk.h"

namespace nfold {
namespace {

void check_plain(const at::Tensor& tensor, const OperatorCall& call) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      is_plain(tensor),
      "deferred construction: ", toString(call.op.operator_name()),
      " mixes deferred tensors with one of layout ", tensor.layout(),
      ", dtype ", tensor.scalar_type(), " and device ", tensor.device(),
      ", which cannot be recorded; build it inside of a scope of "
      "nfold::ConstructionPause");
}

// The tape holds constants until the replay. The memory of one that does not
// own it (from_blob) may be gone by then, and one with the interception key
// may be a parameter that is released.
bool may_vanish(const at::Tensor& tensor) {
  return tensor.storage().allocator() == nullptr ||
         tensor.key_set().has(kInterceptionKey);
}

at::Tensor unrecorded_clone(const at::Tensor& tensor) {
  UnrecordedScope unrecorded;
  at::NoGradGuard no_grad;
  return tensor.clone();
}

}  // namespace

torch::jit::Stack TwinCalls::twins_of(const OperatorCall& call) {
  return map_stack(call.arguments, [&](const at::Tensor& tensor) {
    return twin_of(tensor, call);
  });
}

at::Tensor TwinCalls::twin_of(const at::Tensor& tensor,
                              const OperatorCall& call) {
  check_plain(tensor, call);
  at::Tensor source = tensor;
  const bool is_deferred = tape_.is_deferred(tensor);
  if (!is_deferred && may_vanish(tensor)) source = unrecorded_clone(tensor);
  const StorageId id = is_deferred ? *tape_.find(tensor.storage())
                                   : tape_.constant_of(source.storage());
  at::Tensor twin = tensor_on(tape_.storages()[id].twin, source);
  // Written arguments are checked on their own, see check_in_place().
  if (at::GradMode::is_enabled() && tensor.requires_grad() &&
      call.traits.written.empty()) {
    twin.set_requires_grad(true);
  }
  return twin;
}

InferredCall TwinCalls::infer(const OperatorCall& call,
                              const torch::jit::Stack& twins) {
  try {
    return infer_on_meta(call.op, call.traits, twins);
  } catch (const c10::Error&) {
    // There is no meta kernel, or the shape depends on values, or the call is
    // wrong. Real tensors tell, and raise what they would raise eagerly.
  }
  return infer_from_values(call, twins);
}

InferredCall TwinCalls::infer_from_values(const OperatorCall& call,
                                          const torch::jit::Stack& twins) {
  const torch::jit::Stack arguments =
      values_.substitute(call.arguments, CurrentValues::Use::kWrite);
  torch::jit::Stack results;
  const auto run = [&] {
    at::NoGradGuard no_grad;
    results = call.run_with(arguments);
  };
  if (call.traits.is_random) {
    // Which numbers does not matter here, but the generator must not notice.
    tape_.timeline().run_aside(call.generator(), run);
  } else {
    run();
  }
  std::unordered_map<const c10::StorageImpl*, c10::Storage> known;
  const std::vector<at::Tensor> given = tensors_of(arguments);
  const std::vector<at::Tensor> given_twins = tensors_of(twins);
  for (std::size_t i = 0; i < given.size(); ++i) {
    known[given[i].storage().unsafeGetStorageImpl()] = given_twins[i].storage();
  }
  const auto on_meta = [&](const at::Tensor& real) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        is_plain(real),
        "deferred construction: ", toString(call.op.operator_name()),
        " returns a tensor of layout ", real.layout(),
        ", which cannot be recorded; build it inside of a ",
        "scope of nfold::ConstructionPause");
    c10::Storage& twin = known[real.storage().unsafeGetStorageImpl()];
    if (!twin) twin = make_twin_storage(real.storage().nbytes());
    twin.set_nbytes(std::max(twin.nbytes(), real.storage().nbytes()));
    return tensor_on(twin, real);
  };
  InferredCall inferred{map_stack(results, on_meta),
                        map_stack(arguments, on_meta)};
  if (call.needs_history()) {
    // Whether it is differentiable is not known; most are.
    for (at::Tensor& result : tensors_of(inferred.results)) {
      if (result.is_floating_point()) result.set_requires_grad(true);
    }
  }
  return inferred;
}

}  // namespace nfold
