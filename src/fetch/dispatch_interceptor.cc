#include "fetch/dispatch_interceptor.h"

#include <ATen/core/ivalue.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "fetch/operator_kind.h"
#include "fetch/sharded_arguments.h"
#include "fetch/typed_operators.h"
#include "param/dispatch_fallback.h"

namespace nfold {
namespace {

using Watched = DispatchInterceptor::Watched;

// The key set of a tensor is protected, and there is no function to add a
// key of an out-of-tree library to it.
class KeySetAccess : public c10::TensorImpl {
 public:
  static c10::DispatchKeySet& of(const at::Tensor& tensor) {
    constexpr auto member = &KeySetAccess::key_set_;
    return tensor.unsafeGetTensorImpl()->*member;
  }
};

void add_key(const at::Tensor& tensor) {
  auto& keys = KeySetAccess::of(tensor);
  keys = keys.add(kInterceptionKey);
}

void remove_key(const at::Tensor& tensor) {
  auto& keys = KeySetAccess::of(tensor);
  keys = keys.remove(kInterceptionKey);
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.unsafeGetTensorImpl()
                                    ->unsafe_storage()
                                    .unsafeGetStorageImpl()
                              : nullptr;
}

// Read by every operator that has a marked argument, changed seldom: each
// thread remembers what it found, until the table changes.
class Table {
 public:
  Watched find(const at::Tensor& tensor) const {
    struct Slot {
      const c10::StorageImpl* storage = nullptr;
      std::uint64_t epoch = 0;
      Watched watched{};
    };
    constexpr std::size_t kNumSlots = 256;
    thread_local std::array<Slot, kNumSlots> slots{};
    const auto* storage = storage_of(tensor);
    const auto address = reinterpret_cast<std::uintptr_t>(storage);
    auto& slot = slots[(address >> 4 ^ address >> 12) % kNumSlots];
    const auto epoch = epoch_.load(std::memory_order_acquire);
    if (slot.storage == storage && slot.epoch == epoch) return slot.watched;
    const std::shared_lock lock(mutex_);
    const auto found = watched_.find(storage);
    slot = {storage, epoch_.load(std::memory_order_relaxed),
            found == watched_.end() ? Watched{} : found->second};
    return slot.watched;
  }

  template <typename Change>
  void change(const Change& apply) {
    const std::unique_lock lock(mutex_);
    apply(watched_);
    epoch_.fetch_add(1, std::memory_order_release);
  }

 private:
  mutable std::shared_mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, Watched> watched_;
  std::atomic<std::uint64_t> epoch_{1};
};

Table& table() {
  // Never destroyed: operators may run while the process ends.
  static auto* instance = new Table;
  return *instance;
}

// A result that is an alias the schema does not tell of, such as an argument
// returned as it came, must be noticed when it is used.
void mark_aliases(const c10::OperatorHandle& op, torch::jit::Stack& stack,
                  UnitRefs units) {
  const auto num_returns = op.schema().returns().size();
  const auto mark = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || has_interception_key(tensor)) return;
    for (const auto* unit : units) {
      if (storage_of(tensor) == storage_of(unit->full())) add_key(tensor);
    }
  };
  for (const auto& value : torch::jit::last(stack, num_returns)) {
    if (value.isTensor()) mark(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& each : value.toTensorList()) mark(each);
    }
  }
}

// Of the operators that replace the memory of their first argument.
void check_replaces_none(const c10::OperatorHandle& op,
                         const torch::jit::Stack& stack) {
  const auto& self =
      torch::jit::last(stack, op.schema().arguments().size()).front();
  if (!self.isTensor() || !has_interception_key(self.toTensor())) return;
  const auto watched = table().find(self.toTensor());
  TORCH_CHECK_VALUE(
      !watched.unit, watched.handler ? watched.handler->where() : "", ": ",
      op.schema().name(), " would replace the memory of ",
      watched.unit ? param_name(*watched.unit, self.toTensor()) : "",
      ", which is sharded (Module::to and set_data do this). Convert the "
      "module before it is sharded, or set the dtype in the configuration.");
}

bool on_operator(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                 torch::jit::Stack* stack) {
  const auto kind = cached_operator_kind(op);
  if (kind == OperatorKind::kReplaceData) check_replaces_none(op, *stack);
  if (kind != OperatorKind::kCompute && kind != OperatorKind::kForeign) {
    return false;
  }
  const ShardedArguments arguments(op, *stack);
  if (arguments.is_empty()) return false;
  warn_of_autocast(*arguments.units().front());
  const AccessPin pin(arguments.handler(), arguments.units());
  if (kind == OperatorKind::kForeign) {
    call_below_interception(op, keys, stack);
  } else {
    const c10::impl::ExcludeDispatchKeyGuard guard(kInterceptionKey);
    call_below_interception(op, keys, stack);
  }
  mark_aliases(op, *stack, arguments.units());
  return true;
}

}  // namespace

void DispatchInterceptor::watch(ShardedUnit& unit, AccessHandler& handler) {
  set_access_handler(&on_operator);
  register_typed_operators();
  table().change([&](auto& watched) {
    watched[storage_of(unit.full())] = {&unit, &handler, false};
  });
  if (unit.options().is_resident) return;
  for (const auto& param : unit.params()) {
    for (const auto& tensor : param.tensors) add_key(tensor);
  }
}

void DispatchInterceptor::unwatch(ShardedUnit& unit) noexcept {
  for (const auto& param : unit.params()) {
    for (const auto& tensor : param.tensors) remove_key(tensor);
  }
  table().change(
      [&](auto& watched) { watched.erase(storage_of(unit.full())); });
}

void DispatchInterceptor::verify(const ShardedUnit& unit) const {
  const auto where = [&] { return table().find(unit.full()).handler->where(); };
  const auto* storage = storage_of(unit.full());
  for (std::size_t i = 0; i < unit.params().size(); ++i) {
    const auto& param = unit.params()[i];
    const auto range = unit.layout().param_range(i);
    for (const auto& tensor : param.tensors) {
      const bool is_in_place =
          has_interception_key(tensor) != unit.options().is_resident &&
          storage_of(tensor) == storage &&
          tensor.storage_offset() == range.begin &&
          tensor.numel() == range.numel;
      TORCH_CHECK_VALUE(is_in_place, where(), ": ", param.name,
                        " is no longer the tensor that was sharded; something "
                        "replaced its data (set_data, Module::to, "
                        "torch::load). Change parameters inside "
                        "nfold::GatheredParameters.");
      TORCH_CHECK_VALUE(
          tensor.requires_grad() == unit.options().is_trained, where(), ": ",
          param.name, " was ", unit.options().is_trained ? "" : "not ",
          "trainable when it was sharded, but requires_grad is now ",
          tensor.requires_grad() ? "true" : "false",
          "; freeze or thaw parameters before the engine is made");
    }
  }
}

void DispatchInterceptor::set_writable(const ShardedUnit& unit,
                                       bool is_writable) {
  table().change([&](auto& watched) {
    watched.at(storage_of(unit.full())).is_writable = is_writable;
  });
}

Watched DispatchInterceptor::find(const at::Tensor& tensor) const {
  return table().find(tensor);
}

DispatchInterceptor& dispatch_interceptor() {
  static DispatchInterceptor instance;
  return instance;
}

}  // namespace nfold
