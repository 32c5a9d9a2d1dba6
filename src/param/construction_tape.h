// File: construction_tape.h
//
// What a constructor did: its operators in their order, and the storages they
// work on. Data only; construction_recorder.h writes it and tape_replay.h runs
// it.
//
// [Note: twins]
// Each storage of a tape has a twin on the meta device, and a recorded operator
// holds meta tensors on these twins in place of its tensors. So an argument is
// recorded as storage, dtype, sizes, strides and offset, wherever in the
// arguments it stands, and no TensorImpl of the module is involved: modules
// may swap storages, views and ties between their tensors as they like.
// Operators that infer shapes run on twins too.
//
// Not thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "param/random_timeline.h"
#include "param/replay_plan.h"

namespace nfold {

using StorageId = std::size_t;

struct TapeStorage {
  // What tensors of the constructor are on, without memory. Absent for a
  // constant: a real storage that operators only read.
  c10::Storage deferred;
  c10::Storage twin;
  // The values before the first operator, if there were any. Never written.
  c10::Storage initial;
  // No operator has written to it since a factory made it, so pointers may, see
  // zero_storage.h.
  bool is_zero = false;
  // Number of operators on the tape when it was last changed.
  std::size_t version = 0;

  bool is_constant() const { return !deferred; }
  // Does anything but the tape hold it?
  bool is_in_use() const { return deferred && deferred.use_count() > 1; }
};

struct TapeOperator {
  c10::OperatorHandle op;
  torch::jit::Stack arguments;      // tensors on twins, see the note
  std::vector<at::Tensor> results;  // likewise, in the order of tensors_of()
  std::optional<RandomDraw> draw;
  // Some operators choose the dtype of their result by the default one.
  c10::ScalarType default_dtype = c10::ScalarType::Float;
};

class ConstructionTape {
 public:
  ConstructionTape() = default;
  ConstructionTape(const ConstructionTape&) = delete;
  ConstructionTape& operator=(const ConstructionTape&) = delete;

  const std::vector<TapeOperator>& operators() const { return operators_; }
  const std::vector<OperatorAccess>& accesses() const { return accesses_; }
  const std::vector<TapeStorage>& storages() const { return storages_; }
  RandomTimeline& timeline() { return timeline_; }

  // Equal for constructors that called the same operators on the same storages
  // in the same order: replays of their tapes store the same things in the same
  // order. Numbers among the arguments do not count. With kWhatever, equal
  // also if they kept other tensors of those they made: then replays store
  // what both kept in one order.
  enum class Kept { kSame, kWhatever };
  std::uint64_t fingerprint(Kept kept = Kept::kSame) const;

  // Is the tensor's memory still to come from this tape?
  bool is_deferred(const at::Tensor& tensor) const;

  // The storage that a tensor of the constructor is on, if it is on the tape.
  std::optional<StorageId> find(const c10::Storage& storage) const;
  std::optional<StorageId> find_twin(const c10::Storage& twin) const;

  StorageId add_deferred(c10::Storage deferred, c10::Storage twin,
                         c10::Storage initial = {});
  // The constant with the values that a real storage has now. Small ones are
  // copied, for they may be changed through pointers; larger ones are referred
  // to, and whoever lets an operator change them says so before.
  StorageId constant_of(const c10::Storage& storage);
  bool refers_to(const c10::Storage& storage) const;
  // The values of a constant that refers to the storage are elsewhere now.
  void move_constant(const c10::Storage& storage, c10::Storage values);
  // The storage was made by make_zero_storage().
  void mark_zero(StorageId id);
  // An operator writes to the storage, so pointers may not any more.
  void seal(StorageId id, std::string why_without_memory);
  // Somebody has given the storage memory. What the tape does with it from now
  // on, it does for itself.
  void let_go(StorageId id);
  // A storage has become larger.
  void grow(StorageId id, std::size_t nbytes);

  void add(TapeOperator entry, OperatorAccess access);

 private:
  StorageId add(TapeStorage storage, const c10::Storage& known_as);

  std::vector<TapeOperator> operators_;
  std::vector<OperatorAccess> accesses_;  // of the operators, in their order
  std::vector<TapeStorage> storages_;
  // Deferred storages, and the real ones that constants were made of. Deferred
  // ones are held, so their address stays theirs.
  std::unordered_map<const c10::StorageImpl*, StorageId> by_storage_;
  std::unordered_map<const c10::StorageImpl*, StorageId> by_twin_;
  // Pointers of the constructor may still point to these.
  std::vector<c10::Storage> sealed_;
  RandomTimeline timeline_;
};

// A storage on the meta device.
c10::Storage make_twin_storage(std::size_t nbytes);

}  // namespace nfold
