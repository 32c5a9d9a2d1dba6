#include "param/deferred_construction.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "param/construction_recorder.h"
#include "param/dispatch_fallback.h"

namespace nfold {
namespace {

bool record_operator(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     torch::jit::Stack* stack) {
  // Torch hands thread-local keys on to threads that it starts; those find no
  // recorder.
  ConstructionRecorder* recorder = ConstructionRecorder::active();
  return recorder != nullptr && recorder->intercept(op, keys, stack);
}

void start_recording(ConstructionRecorder* recorder) {
  set_recording_handler(&record_operator);
  ConstructionRecorder::set_active(recorder);
  // So that factories are seen, which have no tensor to carry the key.
  c10::impl::tls_set_dispatch_key_included(kInterceptionKey, true);
}

void stop_recording() {
  c10::impl::tls_set_dispatch_key_included(kInterceptionKey, false);
  ConstructionRecorder::set_active(nullptr);
}

}  // namespace

ConstructionScope::ConstructionScope(const ConstructionOptions& options) {
  if (!options.enabled || ConstructionRecorder::active() != nullptr) return;
  RecorderOptions recorder_options;
  recorder_options.dtype = options.dtype;
  recorder_options.device = options.device;
  recorder_options.group = options.group;
  recorder_ = std::make_unique<ConstructionRecorder>(recorder_options);
  start_recording(recorder_.get());
}

ConstructionScope::~ConstructionScope() {
  if (recorder_) stop_recording();
}

std::unique_ptr<ConstructionTape> ConstructionScope::finish() {
  if (!recorder_) return nullptr;
  const std::unique_ptr<ConstructionRecorder> recorder = std::move(recorder_);
  stop_recording();
  return recorder->finish();
}

ConstructionPause::ConstructionPause()
    : recorder_(ConstructionRecorder::active()) {
  if (recorder_ != nullptr) recorder_->pause();
}

ConstructionPause::~ConstructionPause() {
  if (recorder_ != nullptr) recorder_->resume();
}

void make_real(const std::vector<at::Tensor>& tensors) {
  ConstructionRecorder* recorder = ConstructionRecorder::active();
  if (recorder != nullptr) recorder->make_real(tensors);
}

bool is_deferred_here(const at::Tensor& tensor) {
  const ConstructionRecorder* recorder = ConstructionRecorder::active();
  return recorder != nullptr && recorder->is_deferred(tensor);
}

Group* construction_group() {
  const ConstructionRecorder* recorder = ConstructionRecorder::active();
  return recorder != nullptr ? recorder->group() : nullptr;
}

}  // namespace nfold
