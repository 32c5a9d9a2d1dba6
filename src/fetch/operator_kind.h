// File: operator_kind.h
//
// What an operator does with the memory of its tensor arguments, as far as
// its schema and registration tell. Pure; decided once per operator.
//
//   kind           | needs the data | runs with interception
//   ---------------+----------------+-----------------------------------------
//   kMetadata      | no             | on: only sizes and types are looked at
//   kMayCopy       | no             | on: a view, or else a copy made by an
//                  |                | operator inside, which is noticed itself
//   kCompute       | yes            | off: nothing inside can meet a unit that
//                  |                | its arguments do not name
//   kForeign       | yes            | on: code of others may use any unit
//   kReplaceData   | error          | -
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace nfold {

enum class OperatorKind {
  kMetadata,
  kMayCopy,
  kCompute,
  kForeign,
  kReplaceData
};

OperatorKind operator_kind(const c10::OperatorHandle& op);

// The same, remembered per thread: no lock on the path of every operator.
OperatorKind cached_operator_kind(const c10::OperatorHandle& op);

}  // namespace nfold
