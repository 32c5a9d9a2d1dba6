// File: dispatch_fallback.h
//
// The kernel that nfold registers with torch's dispatcher for all operators,
// and who gets to see a call.
//
// The dispatch key DeferredInit is reserved for libraries outside of torch. It
// stands above autograd, and a fallback for it sees every operator that
// - has a tensor whose key set holds it (a sharded parameter, or a view), or
// - is called on a thread that has it included in its thread-local state
//   (while the constructors of a module are recorded).
// A key has one fallback, so both uses meet here. A call is offered to the
// recording handler, then to the access handler, and if neither takes it, goes
// on below the key as if nothing had been there.
//
//   bool on_access(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
//                  torch::jit::Stack* stack);  // true: handled
//   nfold::set_access_handler(&on_access);
//
// A handler that returns true has popped the arguments and pushed the results,
// or has raised; one that returns false has left the stack as it was.
//
// Handlers are set once, before the first call that needs them, and are called
// on any thread. Nothing here knows of modules, ranks or shards.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace nfold {

inline constexpr c10::DispatchKey kInterceptionKey =
    c10::DispatchKey::DeferredInit;

using DispatchHandler = bool (*)(const c10::OperatorHandle& op,
                                 c10::DispatchKeySet keys,
                                 torch::jit::Stack* stack);

// nullptr takes a handler away. Thread-safe.
void set_recording_handler(DispatchHandler handler);
void set_access_handler(DispatchHandler handler);

// While one lives on a thread, calls on it are not offered to the recording
// handler: what an operator calls inside of it is part of that operator.
class UnrecordedScope {
 public:
  UnrecordedScope();
  ~UnrecordedScope();
  UnrecordedScope(const UnrecordedScope&) = delete;
  UnrecordedScope& operator=(const UnrecordedScope&) = delete;
};

// What the dispatcher calls: for kernels of single operators that are
// registered with the key and want to go the general way.
void run_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack);
// Does this thread offer its operators to the recording handler?
inline bool is_recording_here() {
  return c10::impl::tls_is_dispatch_key_included(kInterceptionKey);
}

// Runs the operator as if there were no recording handler: for that handler,
// when it wants to do something before or after.
void call_below_recording(const c10::OperatorHandle& op,
                          c10::DispatchKeySet keys, torch::jit::Stack* stack);

// Runs the operator with the kernel of the next key.
void call_below_interception(const c10::OperatorHandle& op,
                             c10::DispatchKeySet keys,
                             torch::jit::Stack* stack);

}  // namespace nfold
