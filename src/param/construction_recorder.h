// File: construction_recorder.h
//
// Decides for every operator that a constructor calls whether it runs now or is
// recorded, and so writes the construction tape.
//
// [Note: what is recorded]
// A tensor is deferred if its storage is on the tape and has no memory; else
// it is real. In this order:
//   operator                                          what happens
//   made of other operators                           each of those is asked
//   on deferred tensors
//     that views, or changes sizes or strides alone   runs now
//     whose result is no tensor (item, equal)         runs now, on the values
//     that changes a real tensor from outside         that the tape gives
//     else                                            recorded
//   on real tensors, or on none (a factory)
//     random, and changes a tensor from outside       runs now, with the draws
//                                                     that are its
//     random                                          recorded
//     that changes an argument                        runs now
//     whose result is small, or not larger than       runs now
//     the memory of its arguments, or has a history
//     else                                            recorded
// "From outside" is what the constructor has not made itself. A small real
// tensor that the constructor has made becomes deferred when a recorded
// operator changes it. So tables of numbers can be read and written through
// pointers, while random numbers of any size keep the order of their draws.
//
// Not thread-safe: one thread records, from construction to finish().
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "nfold/group.h"
#include "param/construction_tape.h"
#include "param/current_values.h"
#include "param/operator_call.h"
#include "param/tape_writer.h"

namespace nfold {

struct RecorderOptions {
  // Of what factories make of another floating-point dtype.
  std::optional<c10::ScalarType> dtype;
  // Of what factories make on any device but meta.
  std::optional<c10::Device> device;
  // Results up to this size are real from the start.
  std::size_t max_real_bytes = std::size_t{16} << 10;
  // Passed on to whoever asks.
  Group* group = nullptr;
};

class ConstructionRecorder {
 public:
  explicit ConstructionRecorder(const RecorderOptions& options);
  ConstructionRecorder(const ConstructionRecorder&) = delete;
  ConstructionRecorder& operator=(const ConstructionRecorder&) = delete;

  // A DispatchHandler, on the recording thread.
  bool intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                 torch::jit::Stack* stack);

  // In between, what does not depend on deferred tensors runs now, as it would
  // without recorder. May be nested.
  void pause();
  void resume();

  bool is_deferred(const at::Tensor& tensor) const {
    return tape_->is_deferred(tensor);
  }
  // Gives deferred tensors their memory and current values, for good.
  void make_real(const std::vector<at::Tensor>& tensors);
  Group* group() const { return options_.group; }

  // Ends the recording. Raises c10::NotImplementedError if numbers were drawn
  // from a generator without an operator.
  std::unique_ptr<ConstructionTape> finish();

  // The one that records on this thread, or null. Held here because a storage
  // calls its hook without any context.
  static ConstructionRecorder* active();
  static void set_active(ConstructionRecorder* recorder);

 private:
  torch::jit::Stack handle_deferred(const OperatorCall& call);
  torch::jit::Stack handle_real(OperatorCall& call);
  torch::jit::Stack handle_factory(OperatorCall& call);
  torch::jit::Stack record(const OperatorCall& call);
  torch::jit::Stack run_now(const OperatorCall& call);
  torch::jit::Stack run_on_values(const OperatorCall& call);
  torch::jit::Stack run_random_now(const OperatorCall& call);

  void choose_dtype(OperatorCall& call, c10::ScalarType result_dtype) const;
  bool takes_more_than_arguments(const OperatorCall& call) const;
  bool is_from_outside(const at::Tensor& tensor) const;
  bool writes_outside(const OperatorCall& call) const;
  void remember_made(const OperatorCall& call,
                     const torch::jit::Stack& results);
  void remember_made(const c10::Storage& storage);
  static void on_write(c10::StorageImpl* storage);
  void show_true_states();

  RecorderOptions options_;
  std::unique_ptr<ConstructionTape> tape_;
  CurrentValues values_;
  TapeWriter writer_;
  // Real storages that the constructor has made. The weak references keep
  // their addresses from being used again.
  std::unordered_map<const c10::StorageImpl*,
                     c10::weak_intrusive_ptr<c10::StorageImpl>>
      made_;
  std::size_t max_made_ = 1024;  // then those that are gone are removed
  int pause_depth_ = 0;
};

}  // namespace nfold
