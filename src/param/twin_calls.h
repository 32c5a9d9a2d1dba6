// File: twin_calls.h
//
// A call on the twins of its tensors (construction_tape.h has the note), and
// what it returns, without having run on the tensors themselves.
//
//   nfold::TwinCalls calls(tape, values);
//   torch::jit::Stack twins = calls.twins_of(call);
//   auto inferred = calls.infer(call, twins);
//
// Not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/stack.h>

#include "param/construction_tape.h"
#include "param/current_values.h"
#include "param/operator_call.h"
#include "param/shape_inference.h"

namespace nfold {

class TwinCalls {
 public:
  TwinCalls(ConstructionTape& tape, CurrentValues& values)
      : tape_(tape), values_(values) {}

  // The arguments with twins in place of tensors. Real tensors become
  // constants of the tape. Raises c10::NotImplementedError for tensors that
  // are not dense.
  torch::jit::Stack twins_of(const OperatorCall& call);

  // On the meta device; where that does not do, with real values, computed on
  // the side. Raises what the operator raises eagerly.
  InferredCall infer(const OperatorCall& call, const torch::jit::Stack& twins);

 private:
  at::Tensor twin_of(const at::Tensor& tensor, const OperatorCall& call);
  InferredCall infer_from_values(const OperatorCall& call,
                                 const torch::jit::Stack& twins);

  ConstructionTape& tape_;
  CurrentValues& values_;
};

}  // namespace nfold
