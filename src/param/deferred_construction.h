// File: deferred_construction.h
//
// Builds a module without memory for its tensors, and lets them come later, one
// by one.
//
//   auto deferred = nfold::defer_construction([] { return Gpt(options); });
//   deferred.result->parameters();         // shapes and dtypes, no memory
//   auto model = nfold::materialize(std::move(deferred));
//
// or, where each parameter goes somewhere else, replay(tape, &sink) of
// tape_replay.h. Any code may stand in the function, not only modules.
//
// - The module has the same bits as one that is built eagerly, and the random
//   generators end in the same state.
// - Until then its tensors are on their final device and have their final
//   dtype, sizes, views and ties; only a read or write of elements raises.
// - The constructor may read values with operators (item, equal): they are
//   computed on the side. It may draw from any CPU generator and seed it, view
//   and change tensors in place, swap storages (Module::clone, Module::to,
//   set_data), and raise; then nothing stays behind.
// - It may not draw random numbers without an operator, nor read or write
//   elements of deferred tensors through pointers, except inside of a
//   ConstructionPause. Both raise. But tensors up to 16 KiB that are not
//   random, and those of torch::tensor({...}), are real from the start, and
//   those of torch::empty and zeros become real when they are written through
//   a pointer before an operator has written to them (libtorch 2.13).
// - A generator's state that it reads (get_state, clone) is a placeholder that
//   only means something to set_state in the same constructor.
//
// Scopes belong to their thread. The generators of torch belong to the
// process, so while a thread has a scope, other threads wait to enter theirs.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "nfold/group.h"
#include "param/construction_tape.h"
#include "param/tape_replay.h"

namespace nfold {

class ConstructionRecorder;

struct ConstructionOptions {
  // false: the scope does nothing at all.
  bool enabled = true;
  // What factories give (torch::empty, ones, randn and so on), whatever they
  // are asked for: floating-point tensors of this dtype, all tensors on this
  // device. torch::tensor({...}), and what is made like another tensor, keep
  // theirs. So does a factory that asks for the meta device.
  std::optional<c10::ScalarType> dtype = std::nullopt;
  std::optional<c10::Device> device = std::nullopt;
  // Of ranks that build the same; null: this process builds for itself.
  Group* group = nullptr;
};

// Defers what this thread builds during its life. Scopes may be nested: the
// outermost one decides, the others do nothing.
class ConstructionScope {
 public:
  explicit ConstructionScope(const ConstructionOptions& options = {});
  // Without finish(): the random generators are as before, and tensors that
  // were deferred can no longer be built.
  ~ConstructionScope();
  ConstructionScope(const ConstructionScope&) = delete;
  ConstructionScope& operator=(const ConstructionScope&) = delete;

  // Ends the scope and returns its tape; null if the scope did nothing. The
  // random generators are as before until the tape is replayed.
  //
  // Raises c10::NotImplementedError if random numbers were drawn without an
  // operator.
  std::unique_ptr<ConstructionTape> finish();

 private:
  std::unique_ptr<ConstructionRecorder> recorder_;  // null: does nothing
};

// During its life the thread builds eagerly: what is made is real, with the
// random numbers that are its. Deferred tensors stay so. May be nested; does
// nothing outside of a ConstructionScope.
class ConstructionPause {
 public:
  ConstructionPause();
  ~ConstructionPause();
  ConstructionPause(const ConstructionPause&) = delete;
  ConstructionPause& operator=(const ConstructionPause&) = delete;

 private:
  ConstructionRecorder* recorder_;
};

// Gives tensors that this thread's scope has deferred their memory and the
// values they have by now, for good. What is not deferred is left out.
void make_real(const std::vector<at::Tensor>& tensors);
// Is the tensor deferred by this thread's scope?
bool is_deferred_here(const at::Tensor& tensor);
// Of this thread's scope; null without one.
Group* construction_group();

template <typename Result>
struct DeferredConstruction {
  Result result;
  std::unique_ptr<ConstructionTape> tape;  // may be null, see finish()
};

// Calls `build` inside of a scope.
template <typename Build>
auto defer_construction(Build&& build, const ConstructionOptions& options = {})
    -> DeferredConstruction<decltype(build())> {
  ConstructionScope scope(options);
  auto result = std::forward<Build>(build)();
  auto tape = scope.finish();
  return {std::move(result), std::move(tape)};
}

// Makes everything real that the constructor has left in use.
template <typename Result>
Result materialize(DeferredConstruction<Result> deferred) {
  if (deferred.tape) replay(std::move(deferred.tape));
  return std::move(deferred.result);
}

}  // namespace nfold
