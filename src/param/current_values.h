// File: current_values.h
//
// Real tensors in place of deferred ones, with the values they would have by
// now, for a constructor that reads them.
//
//   nfold::CurrentValues values(tape);
//   auto arguments = values.substitute(call.arguments, Use::kRead);
//
// The values of the last read are kept while they are current: a constructor
// that reads a tensor element by element computes it once. Not thread-safe.
#pragma once

#include <ATen/core/stack.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <unordered_map>
#include <vector>

#include "param/construction_tape.h"

namespace nfold {

class CurrentValues {
 public:
  explicit CurrentValues(ConstructionTape& tape) : tape_(tape) {}

  enum class Use { kRead, kWrite };

  // The arguments with every deferred tensor replaced by a real one. Writing to
  // these changes no value of the tape, but must be announced.
  torch::jit::Stack substitute(const torch::jit::Stack& arguments, Use use);

  // Frees what is kept.
  void clear() { values_.clear(); }

 private:
  struct Value {
    c10::Storage storage;
    std::size_t version = 0;  // of the tape's storage
  };

  void compute(const std::vector<StorageId>& ids);

  ConstructionTape& tape_;
  std::unordered_map<StorageId, Value> values_;
};

}  // namespace nfold
