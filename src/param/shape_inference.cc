#include "param/shape_inference.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "param/deferred_storage.h"
#include "param/dispatch_fallback.h"
#include "param/tensor_walk.h"

namespace nfold {

InferredCall infer_on_meta(const c10::OperatorHandle& op,
                           const OperatorTraits& traits,
                           const torch::jit::Stack& twins) {
  bool needs_history = false;
  InferredCall call;
  call.arguments = map_stack(twins, [&](const at::Tensor& twin) {
    at::Tensor copy = tensor_on(twin.storage(), twin);
    if (twin.requires_grad()) copy.set_requires_grad(needs_history = true);
    return copy;
  });
  torch::jit::Stack stack = call.arguments;
  if (traits.device) {
    stack[*traits.device] = c10::Device(c10::DeviceType::Meta);
  }
  if (traits.pin_memory) stack[*traits.pin_memory] = c10::IValue();
  c10::impl::ExcludeDispatchKeyGuard no_interception(kInterceptionKey);
  std::optional<at::AutoDispatchBelowADInplaceOrView> no_autograd;
  if (!needs_history || !at::GradMode::is_enabled()) no_autograd.emplace();
  op.callBoxed(stack);
  call.results = std::move(stack);
  return call;
}

std::size_t storage_bytes(const torch::jit::Stack& stack) {
  std::unordered_set<const c10::StorageImpl*> seen;
  std::size_t nbytes = 0;
  for (const at::Tensor& tensor : tensors_of(stack)) {
    if (!tensor.has_storage()) continue;
    if (seen.insert(tensor.storage().unsafeGetStorageImpl()).second) {
      nbytes += tensor.storage().nbytes();
    }
  }
  return nbytes;
}

}  // namespace nfold
