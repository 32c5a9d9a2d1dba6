#include "param/dispatch_fallback.h"

#include <torch/library.h>

#include <atomic>

namespace nfold {
namespace {

std::atomic<DispatchHandler>& recording_handler() {
  static std::atomic<DispatchHandler> handler{nullptr};
  return handler;
}

std::atomic<DispatchHandler>& access_handler() {
  static std::atomic<DispatchHandler> handler{nullptr};
  return handler;
}

int& unrecorded_depth() {
  thread_local int depth = 0;
  return depth;
}

bool offer(const std::atomic<DispatchHandler>& to,
           const c10::OperatorHandle& op, c10::DispatchKeySet keys,
           torch::jit::Stack* stack) {
  const DispatchHandler handler = to.load(std::memory_order_acquire);
  return handler != nullptr && handler(op, keys, stack);
}

}  // namespace

void set_recording_handler(DispatchHandler handler) {
  recording_handler().store(handler, std::memory_order_release);
}

void set_access_handler(DispatchHandler handler) {
  access_handler().store(handler, std::memory_order_release);
}

UnrecordedScope::UnrecordedScope() { ++unrecorded_depth(); }

UnrecordedScope::~UnrecordedScope() { --unrecorded_depth(); }

void run_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack) {
  if (unrecorded_depth() > 0 || !offer(recording_handler(), op, keys, stack)) {
    call_below_recording(op, keys, stack);
  }
}

void call_below_recording(const c10::OperatorHandle& op,
                          c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  if (!offer(access_handler(), op, keys, stack)) {
    call_below_interception(op, keys, stack);
  }
}

void call_below_interception(const c10::OperatorHandle& op,
                             c10::DispatchKeySet keys,
                             torch::jit::Stack* stack) {
  const c10::DispatchKeySet below(c10::DispatchKeySet::FULL_AFTER,
                                  kInterceptionKey);
  op.redispatchBoxed(keys & below, stack);
}

}  // namespace nfold

TORCH_LIBRARY_IMPL(_, DeferredInit, library) {
  library.fallback(
      torch::CppFunction::makeFromBoxedFunction<&nfold::run_fallback>());
}
