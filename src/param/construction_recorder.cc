#include "param/construction_recorder.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "param/deferred_storage.h"
#include "param/shape_inference.h"
#include "param/tape_replay.h"
#include "param/tensor_walk.h"
#include "param/zero_storage.h"

namespace nfold {
namespace {

// torch::tensor({...}) makes its tensor with a factory and fills it through a
// pointer. It is told from others by its guard, which leaves ADInplaceOrView
// on; the functions of namespace torch switch that off too. Inference mode
// looks the same, so there tensor() is an ordinary factory.
bool is_inside_torch_tensor() {
  if (c10::InferenceMode::is_enabled()) return false;
  const c10::DispatchKeySet excluded =
      c10::impl::tls_local_dispatch_key_set().excluded_;
  return excluded.has(c10::DispatchKey::AutogradOther) &&
         !excluded.has(c10::DispatchKey::ADInplaceOrView);
}

std::optional<InferredCall> try_infer(const OperatorCall& call,
                                      const torch::jit::Stack& twins) {
  try {
    return infer_on_meta(call.op, call.traits, twins);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

ConstructionRecorder*& active_recorder() {
  thread_local ConstructionRecorder* recorder = nullptr;
  return recorder;
}

// Also where the operator raises.
class PauseGuard {
 public:
  explicit PauseGuard(ConstructionRecorder& recorder) : recorder_(recorder) {
    recorder_.pause();
  }
  ~PauseGuard() { recorder_.resume(); }
  PauseGuard(const PauseGuard&) = delete;
  PauseGuard& operator=(const PauseGuard&) = delete;

 private:
  ConstructionRecorder& recorder_;
};

}  // namespace

ConstructionRecorder::ConstructionRecorder(const RecorderOptions& options)
    : options_(options),
      tape_(std::make_unique<ConstructionTape>()),
      values_(*tape_),
      writer_(*tape_, values_, &ConstructionRecorder::on_write) {
  tape_->timeline().begin();
}

bool ConstructionRecorder::intercept(const c10::OperatorHandle& op,
                                     c10::DispatchKeySet keys,
                                     torch::jit::Stack* stack) {
  const OperatorTraits& traits = operator_traits(op);
  if (traits.is_composite) return false;
  const std::size_t num_arguments = op.schema().arguments().size();
  OperatorCall call{op, traits, keys,
                    torch::jit::last(*stack, num_arguments).vec()};
  const auto tensors = call.tensors();
  const bool has_deferred = std::any_of(
      tensors.begin(), tensors.end(),
      [&](const at::Tensor& tensor) { return tape_->is_deferred(tensor); });
  torch::jit::Stack results =
      has_deferred ? handle_deferred(call) : handle_real(call);
  torch::jit::drop(*stack, num_arguments);
  stack->insert(stack->end(), std::make_move_iterator(results.begin()),
                std::make_move_iterator(results.end()));
  return true;
}

void ConstructionRecorder::pause() {
  if (pause_depth_++ == 0) show_true_states();
}

void ConstructionRecorder::resume() {
  if (--pause_depth_ == 0) tape_->timeline().hide_true_states();
}

void ConstructionRecorder::make_real(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tape_->is_deferred(tensor)) continue;
    const c10::Storage storage = tensor.storage();
    const StorageId id = *tape_->find(storage);
    auto values = current_values(*tape_, {id});
    tape_->seal(id, "its memory is about to come");
    fill_deferred_storage(storage, std::move(values.front()));
    tape_->let_go(id);
    remember_made(storage);
  }
}

ConstructionRecorder* ConstructionRecorder::active() {
  return active_recorder();
}

void ConstructionRecorder::set_active(ConstructionRecorder* recorder) {
  active_recorder() = recorder;
}

std::unique_ptr<ConstructionTape> ConstructionRecorder::finish() {
  values_.clear();
  for (StorageId id = 0; id < tape_->storages().size(); ++id) {
    tape_->seal(id,
                "this tensor has no memory yet: a constructor made it while "
                "nfold deferred construction; materialize the module first");
  }
  tape_->timeline().end();
  return std::move(tape_);
}

torch::jit::Stack ConstructionRecorder::handle_deferred(
    const OperatorCall& call) {
  const OperatorTraits& traits = call.traits;
  if (traits.is_view || traits.changes_metadata || traits.compares_identity) {
    return run_now(call);
  }
  const bool reads_only = !traits.returns_tensors && traits.written.empty();
  if (reads_only || writes_outside(call)) return run_on_values(call);
  if (call.asks_for_meta()) return writer_.infer_results(call);
  if (traits.resizes) {
    writer_.resize(call);
    return {call.arguments[0]};
  }
  return record(call);
}

torch::jit::Stack ConstructionRecorder::handle_real(OperatorCall& call) {
  const OperatorTraits& traits = call.traits;
  if (pause_depth_ > 0 || traits.is_view || traits.changes_metadata ||
      traits.resizes || traits.compares_identity) {
    return run_now(call);
  }
  const auto tensors = call.tensors();
  if (tensors.empty()) return handle_factory(call);
  if (!std::all_of(tensors.begin(), tensors.end(), is_plain)) {
    return traits.is_random ? run_random_now(call) : run_now(call);
  }
  if (traits.is_random) {
    return writes_outside(call) ? run_random_now(call) : record(call);
  }
  // What has a history must have run.
  const bool may_record =
      traits.returns_tensors && traits.written.empty() && !call.needs_history();
  return may_record && takes_more_than_arguments(call) ? record(call)
                                                       : run_now(call);
}

torch::jit::Stack ConstructionRecorder::handle_factory(OperatorCall& call) {
  const OperatorTraits& traits = call.traits;
  const auto layout = call.layout();
  if (!traits.returns_tensors || call.asks_for_meta()) return run_now(call);
  if (layout && *layout != c10::Layout::Strided) {
    return traits.is_random ? run_random_now(call) : run_now(call);
  }
  if (is_inside_torch_tensor()) return run_now(call);
  if (traits.device) {
    call.arguments[*traits.device] =
        options_.device.value_or(call.result_device());
  }
  const auto inferred = try_infer(call, call.arguments);
  if (!inferred) {
    // No meta kernel. The writer has another way to learn the shape.
    return traits.is_random ? record(call) : run_now(call);
  }
  choose_dtype(call, inferred->results.at(0).toTensor().scalar_type());
  const auto chosen = infer_on_meta(call.op, traits, call.arguments);
  const bool is_small =
      storage_bytes(chosen.results) <= options_.max_real_bytes;
  return is_small && !traits.is_random ? run_now(call) : record(call);
}

torch::jit::Stack ConstructionRecorder::record(const OperatorCall& call) {
  for (const at::Tensor& tensor : call.written_tensors()) {
    if (!tape_->is_deferred(tensor)) {
      made_.erase(tensor.storage().unsafeGetStorageImpl());
      writer_.defer(tensor, call);
    }
  }
  // In a pause the generators hold true states, which a recorded draw would
  // not advance.
  const bool hides = pause_depth_ > 0 && call.traits.is_random;
  if (hides) tape_->timeline().hide_true_states();
  torch::jit::Stack results = writer_.record(call);
  if (hides) show_true_states();
  return results;
}

torch::jit::Stack ConstructionRecorder::run_now(const OperatorCall& call) {
  if (!call.traits.changes_metadata) {
    writer_.keep_constants(call.written_tensors());
  }
  torch::jit::Stack results = call.run();
  remember_made(call, results);
  return results;
}

torch::jit::Stack ConstructionRecorder::run_on_values(
    const OperatorCall& call) {
  const auto written = call.written_tensors();
  TORCH_CHECK_NOT_IMPLEMENTED(
      std::none_of(
          written.begin(), written.end(),
          [&](const at::Tensor& tensor) { return tape_->is_deferred(tensor); }),
      "deferred construction: ", toString(call.op.operator_name()),
      " changes a tensor that the constructor has made together with one that "
      "it was given; use one operator for each");
  writer_.keep_constants(written);
  const torch::jit::Stack arguments =
      values_.substitute(call.arguments, CurrentValues::Use::kRead);
  if (!call.traits.is_random) return call.run_with(arguments);
  PauseGuard pause(*this);
  return call.run_with(arguments);
}

torch::jit::Stack ConstructionRecorder::run_random_now(
    const OperatorCall& call) {
  PauseGuard pause(*this);
  return run_now(call);
}

void ConstructionRecorder::choose_dtype(OperatorCall& call,
                                        c10::ScalarType result_dtype) const {
  if (!call.traits.dtype) return;
  // Made explicit in any case, for it may come from the default dtype.
  call.arguments[*call.traits.dtype] =
      options_.dtype && c10::isFloatingType(result_dtype) ? *options_.dtype
                                                          : result_dtype;
}

bool ConstructionRecorder::takes_more_than_arguments(
    const OperatorCall& call) const {
  std::unordered_map<const c10::StorageImpl*, c10::Storage> twins;
  const auto inferred =
      try_infer(call, map_stack(call.arguments, [&](const at::Tensor& tensor) {
                  const c10::Storage& storage = tensor.storage();
                  c10::Storage& twin = twins[storage.unsafeGetStorageImpl()];
                  if (!twin) twin = make_twin_storage(storage.nbytes());
                  return tensor_on(twin, tensor);
                }));
  if (!inferred) return false;
  const std::size_t nbytes = storage_bytes(inferred->results);
  return nbytes > options_.max_real_bytes &&
         nbytes > storage_bytes(call.arguments);
}

bool ConstructionRecorder::is_from_outside(const at::Tensor& tensor) const {
  if (!tensor.has_storage() || !is_plain(tensor)) return true;
  const auto found = made_.find(tensor.storage().unsafeGetStorageImpl());
  return found == made_.end();
}

bool ConstructionRecorder::writes_outside(const OperatorCall& call) const {
  const auto written = call.written_tensors();
  return std::any_of(
      written.begin(), written.end(), [&](const at::Tensor& tensor) {
        return !tape_->is_deferred(tensor) && is_from_outside(tensor);
      });
}

void ConstructionRecorder::remember_made(const OperatorCall& call,
                                         const torch::jit::Stack& results) {
  if (call.traits.is_view || call.traits.changes_metadata) return;
  const auto arguments = call.tensors();
  for (const at::Tensor& result : tensors_of(results)) {
    if (!is_plain(result)) continue;
    const bool is_argument = std::any_of(
        arguments.begin(), arguments.end(), [&](const at::Tensor& argument) {
          return argument.has_storage() && argument.is_alias_of(result);
        });
    if (!is_argument) remember_made(result.storage());
  }
}

void ConstructionRecorder::remember_made(const c10::Storage& storage) {
  if (made_.size() > max_made_) {
    std::erase_if(made_,
                  [](const auto& item) { return item.second.expired(); });
    max_made_ = 2 * made_.size() + 1024;
  }
  made_.insert_or_assign(storage.unsafeGetStorageImpl(),
                         storage.getWeakStorageImpl());
}

void ConstructionRecorder::on_write(c10::StorageImpl* storage) {
  // A storage of another thread's recorder, or of one that was abandoned.
  ConstructionRecorder* recorder = active();
  const c10::Storage holder(
      c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
  const auto id = recorder ? recorder->tape_->find(holder) : std::nullopt;
  TORCH_CHECK_NOT_IMPLEMENTED(
      id.has_value(),
      "deferred construction: a tensor that a constructor has made is written "
      "through a pointer by another thread, or after the construction has "
      "failed; write to it in the constructor's own thread");
  give_zeros(storage);
  recorder->tape_->let_go(*id);
  recorder->remember_made(holder);
}

void ConstructionRecorder::show_true_states() {
  // The states are those after all draws so far; find them out.
  current_values(*tape_, {});
  tape_->timeline().show_true_states();
}

}  // namespace nfold
