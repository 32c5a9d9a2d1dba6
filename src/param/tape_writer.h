// File: tape_writer.h
//
// Puts a call on the construction tape and gives its caller deferred tensors as
// results. Which calls, is for construction_recorder.h.
//
//   nfold::TapeWriter writer(tape, values);
//   torch::jit::Stack results = writer.record(call);
//
// Not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/stack.h>

#include <vector>

#include "param/construction_tape.h"
#include "param/current_values.h"
#include "param/operator_call.h"
#include "param/shape_inference.h"
#include "param/twin_calls.h"
#include "param/zero_storage.h"

namespace nfold {

class TapeWriter {
 public:
  // The hook is called where the constructor writes to a tensor of zeros
  // through a pointer, see zero_storage.h.
  TapeWriter(ConstructionTape& tape, CurrentValues& values, WriteHook on_write)
      : tape_(tape), twins_(tape, values), on_write_(on_write) {}

  // The call's tensors may be deferred or real; those it changes must be
  // deferred, see defer().
  //
  // Raises what the operator raises, and c10::NotImplementedError for tensors
  // that are not dense.
  torch::jit::Stack record(const OperatorCall& call);

  // What the call returns, on meta and not on the tape.
  torch::jit::Stack infer_results(const OperatorCall& call);

  // The call only changes sizes; does that, where memory may have to grow.
  void resize(const OperatorCall& call);

  // Makes a real tensor deferred, with all that share its storage. The tape
  // keeps its values.
  void defer(const at::Tensor& tensor, const OperatorCall& call);
  // Real tensors are about to change that operators on the tape have read;
  // keeps their values as they are.
  void keep_constants(const std::vector<at::Tensor>& written);

 private:
  void follow_geometry(const OperatorCall& call, const InferredCall& inferred);
  torch::jit::Stack results_of(const OperatorCall& call,
                               const InferredCall& inferred);
  at::Tensor tensor_of(const at::Tensor& twin, const OperatorCall& call);
  StorageId add_result(const at::Tensor& twin, const OperatorCall& call);
  void seal(const OperatorCall& call);
  OperatorAccess access_of(const OperatorCall& call,
                           const TapeOperator& entry) const;

  ConstructionTape& tape_;
  TwinCalls twins_;
  WriteHook on_write_;
};

}  // namespace nfold
