#include "param/tape_replay.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/copy.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/ScalarTypeToTypeMeta.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <functional>
#include <unordered_map>
#include <utility>

#include "param/deferred_storage.h"
#include "param/dispatch_fallback.h"
#include "param/tensor_walk.h"

namespace nfold {
namespace {

// The default dtype belongs to the process, so it is touched only where it is
// another than at the time of recording.
class DefaultDtypeScope {
 public:
  explicit DefaultDtypeScope(c10::ScalarType dtype)
      : previous_(c10::get_default_dtype_as_scalartype()), current_(dtype) {
    set(previous_, current_);
  }
  ~DefaultDtypeScope() { set(current_, previous_); }
  DefaultDtypeScope(const DefaultDtypeScope&) = delete;
  DefaultDtypeScope& operator=(const DefaultDtypeScope&) = delete;

 private:
  static void set(c10::ScalarType from, c10::ScalarType to) {
    if (from != to) c10::set_default_dtype(c10::scalarTypeToTypeMeta(to));
  }

  c10::ScalarType previous_;
  c10::ScalarType current_;
};

// What to do with storages; the operators are the same for everyone.
struct StorageHandlers {
  std::function<void(StorageId, c10::Storage)> finish;
  std::function<void(StorageId, c10::Storage)> store;
  std::function<c10::Storage(StorageId)> load;
};

class Replayer {
 public:
  Replayer(ConstructionTape& tape, StorageHandlers handlers, bool is_last)
      : tape_(tape),
        handlers_(std::move(handlers)),
        is_last_(is_last),
        memory_(tape.storages().size()),
        is_started_(tape.storages().size(), false) {}

  void run(const std::vector<ReplayStep>& steps) {
    // The recorded operators are complete: no history, no casts, no recording.
    c10::impl::ExcludeDispatchKeyGuard no_interception(kInterceptionKey);
    c10::impl::ExcludeDispatchKeyGuard no_autocast(
        c10::autocast_dispatch_keyset);
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    for (const auto& [action, index] : steps) take(action, index);
  }

 private:
  void take(ReplayAction action, std::size_t index) {
    switch (action) {
      case ReplayAction::kRun:
        run_operator(index);
        break;
      case ReplayAction::kLoad:
        memory_[index] = handlers_.load(index);
        break;
      case ReplayAction::kStore:
        handlers_.store(index, std::move(memory_of(index)));
        memory_[index] = {};
        break;
      case ReplayAction::kDrop:
        memory_[index] = {};
        break;
      case ReplayAction::kFinish:
        handlers_.finish(index, std::move(memory_of(index)));
        memory_[index] = {};
        break;
    }
  }

  void run_operator(std::size_t index) {
    const TapeOperator& entry = tape_.operators()[index];
    DefaultDtypeScope default_dtype(entry.default_dtype);
    torch::jit::Stack stack = map_stack(
        entry.arguments, [this](const at::Tensor& twin) { return real(twin); });
    const std::vector<at::Tensor> arguments = tensors_of(stack);
    const auto call = [&] { entry.op.callBoxed(stack); };
    try {
      if (!entry.draw) {
        call();
      } else if (is_last_) {
        tape_.timeline().run_last(*entry.draw, call);
      } else {
        tape_.timeline().run(*entry.draw, call);
      }
    } catch (c10::Error& error) {
      error.add_context(c10::str(
          "deferred construction: while replaying operator ", index, " of ",
          tape_.operators().size(), ", ", entry.op.operator_name()));
      throw;
    }
    const std::vector<at::Tensor> results = tensors_of(stack);
    TORCH_INTERNAL_ASSERT(results.size() == entry.results.size());
    for (std::size_t i = 0; i < results.size(); ++i) {
      bind(results[i], entry.results[i], arguments);
    }
  }

  // Makes the storage of a result that of its twin, if it is a new one.
  void bind(const at::Tensor& result, const at::Tensor& twin,
            const std::vector<at::Tensor>& arguments) {
    c10::Storage& memory = memory_[*tape_.find_twin(twin.storage())];
    if (memory) return;
    const bool is_new = std::none_of(arguments.begin(), arguments.end(),
                                     [&](const at::Tensor& argument) {
                                       return argument.is_alias_of(result);
                                     });
    if (is_new && has_geometry(result, twin) &&
        result.storage().nbytes() >= twin.storage().nbytes()) {
      memory = result.storage();
      return;
    }
    // The kernel has chosen other strides than was inferred, or has returned
    // its argument. What was recorded after it relies on the inferred ones.
    TORCH_INTERNAL_ASSERT(result.sizes() == twin.sizes());
    memory = allocate_storage(twin.storage().nbytes(), result.device());
    tensor_on(memory, twin).copy_(result);
  }

  at::Tensor real(const at::Tensor& twin) {
    return tensor_on(memory_of(*tape_.find_twin(twin.storage())), twin);
  }

  c10::Storage& memory_of(StorageId id) {
    c10::Storage& memory = memory_[id];
    if (memory) return memory;
    const TapeStorage& storage = tape_.storages()[id];
    if (storage.is_constant()) {
      memory = storage.initial;
    } else if (storage.initial && !is_started_[id]) {
      memory = copy_storage(storage.initial, storage.twin.nbytes());
    } else {
      memory =
          allocate_storage(storage.twin.nbytes(), storage.deferred.device());
    }
    is_started_[id] = true;
    return memory;
  }

  ConstructionTape& tape_;
  StorageHandlers handlers_;
  bool is_last_;
  std::vector<c10::Storage> memory_;  // of the storages that are there
  std::vector<bool> is_started_;      // had memory before
};

ReplayRequest request_for(ConstructionTape& tape) {
  ReplayRequest request;
  for (const TapeOperator& entry : tape.operators()) {
    request.must_run.push_back(entry.draw &&
                               !tape.timeline().is_known(*entry.draw));
  }
  for (const TapeStorage& storage : tape.storages()) {
    request.nbytes.push_back(static_cast<std::int64_t>(storage.twin.nbytes()));
  }
  request.is_wanted.resize(tape.storages().size());
  request.may_store.resize(tape.storages().size());
  return request;
}

}  // namespace

void replay(std::unique_ptr<ConstructionTape> tape, ReplaySink* sink,
            const ReplayOptions& options) {
  TORCH_CHECK_VALUE(tape != nullptr,
                    "replay: expected a construction tape but found none; a "
                    "nested or disabled ConstructionScope has none, and its "
                    "tensors are real or belong to the outermost scope");
  using Destination = ReplaySink::Destination;
  ReplayRequest request = request_for(*tape);
  request.max_waiting_bytes = options.max_waiting_bytes;
  const auto& storages = tape->storages();
  for (StorageId id = 0; id < storages.size(); ++id) {
    if (!storages[id].is_in_use()) continue;
    const Destination destination =
        sink ? sink->destination_of(storages[id].deferred)
             : Destination::kInPlace;
    request.is_wanted[id] = destination != Destination::kNowhere;
    request.may_store[id] = destination == Destination::kSink;
  }
  StorageHandlers handlers;
  handlers.finish = [&](StorageId id, c10::Storage value) {
    const c10::Storage& deferred = storages[id].deferred;
    if (request.may_store[id]) {
      sink->store(deferred, std::move(value));
    } else {
      fill_deferred_storage(deferred, std::move(value));
    }
  };
  handlers.store = [&](StorageId id, c10::Storage value) {
    sink->store(storages[id].deferred, std::move(value));
  };
  handlers.load = [&](StorageId id) {
    return sink->load(storages[id].deferred);
  };
  Replayer(*tape, std::move(handlers), /*is_last=*/true)
      .run(plan_replay(tape->accesses(), request));
  tape->timeline().leave_final_states();
}

std::vector<c10::Storage> current_values(ConstructionTape& tape,
                                         const std::vector<StorageId>& ids) {
  ReplayRequest request = request_for(tape);
  for (StorageId id : ids) request.is_wanted[id] = true;
  std::unordered_map<StorageId, c10::Storage> values;
  StorageHandlers handlers;
  handlers.finish = [&](StorageId id, c10::Storage value) {
    values[id] = std::move(value);
  };
  Replayer(tape, std::move(handlers), /*is_last=*/false)
      .run(plan_replay(tape.accesses(), request));
  std::vector<c10::Storage> result;
  result.reserve(ids.size());
  for (StorageId id : ids) result.push_back(values[id]);
  return result;
}

}  // namespace nfold
