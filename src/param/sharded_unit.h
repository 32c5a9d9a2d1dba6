// File: sharded_unit.h
//
// The central noun: parameters that are communicated together, as views of
// one flat storage, with the parts of it that this rank owns.
//
// [Note: Tensors of a unit]
//   full          flat [numel], the unit's dtype. The module's parameters are
//                 views of it, each at a 64-byte boundary. Zero in between.
//   owned range   what this rank updates: its shard where optimizer state is
//                 sharded (stages 1 to 3), everything where it is not
//                 (stage 0).
//   owned         full[owned range].
//   shard         full[rank * S, (rank + 1) * S): what this rank sends when
//                 the unit is gathered.
//   master        [owned numel]: the weights the optimizer updates. `owned`
//                 itself where its precision suffices, else an fp32 copy that
//                 holds the values the model was built with, unrounded.
//   grad          [owned numel], accumulation dtype: gradients of the owned
//                 range, summed over ranks and micro steps, up to one
//                 constant factor that the optimizer applies.
//   owned == round(master) to the unit's dtype, whenever no step is under
//   way.
//
// State machine. Only begin_gather, finish_gather, release and publish_shard
// change the state; each checks that the row allows it.
//
//   state \ op | begin_gather | finish_gather | release | publish_shard
//   -----------+--------------+---------------+---------+---------------
//   sharded    | -> gathering | invalid       | no-op   | version + 1
//   gathering  | no-op        | -> unsharded  | invalid | invalid
//   unsharded  | no-op        | no-op         | no-op   | version + 1,
//              |              |               |         | -> sharded
//
//   sharded    only `shard` holds current values
//   gathering  a collective writes the rest of `full`
//   unsharded  all of `full` holds current values
//
// The storage is resident (stages 0 to 2): `full` keeps its memory in every
// state, so there is nothing to release. With one shard, or when this rank
// owns everything, publish_shard leaves the unit unsharded.
//
// Not thread-safe; one thread at a time drives a unit.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout/unit_layout.h"
#include "nfold/collectives.h"
#include "param/param_state.h"

namespace nfold {

enum class UnitState { kSharded, kGathering, kUnsharded };
const char* name_of(UnitState state);

struct ShardedUnitOptions {
  std::string name;
  at::ScalarType dtype = at::kFloat;  // of `full`
  // Of `master`; `owned` serves as master when it is the unit's dtype.
  at::ScalarType master_dtype = at::kFloat;
  at::ScalarType grad_dtype = at::kFloat;
  int rank = 0;        // in the shard group
  int num_shards = 1;  // its size
  bool owns_whole_range = false;
  bool is_trained = true;  // false: no master, no grad
};

class ShardedUnit {
 public:
  // Moves the parameters' values into a new flat storage and makes every
  // tensor of every parameter a view of it.
  ShardedUnit(std::vector<ParamState> params, ShardedUnitOptions options);
  ShardedUnit(const ShardedUnit&) = delete;
  ShardedUnit& operator=(const ShardedUnit&) = delete;

  const std::string& name() const { return options_.name; }
  const ShardedUnitOptions& options() const { return options_; }
  const UnitLayout& layout() const { return layout_; }
  const std::vector<ParamState>& params() const { return params_; }
  FlatRange owned_range() const;

  UnitState state() const { return state_; }
  // Counts publish_shard; readers on other ranks will wait for it.
  std::int64_t version() const { return version_; }

  const at::Tensor& full() const { return full_; }
  at::Tensor owned() const { return part(full_, owned_range()); }
  const at::Tensor& master() const { return master_; }
  // Undefined where `master` is `owned`: then nothing has to be rounded.
  at::Tensor low_precision_owned() const;

  // The accumulated gradient, allocated at the first call.
  const at::Tensor& grad();
  bool has_grad() const { return has_grad_; }
  // Takes the reduced gradient of the whole unit [numel]; only the owned range
  // matters. The first contribution after clear_grad becomes the gradient
  // (its memory too, where this rank owns all of it), later ones add.
  void accumulate_grad(at::Tensor reduced, float scale);
  void clear_grad();

  // Starts filling `full` from the shards of all ranks of the group.
  // Collective. Several units may be gathered in one call; there is one
  // collective for each dtype among them.
  static void begin_gather(Group& group, std::vector<ShardedUnit*> units);
  // Waits for it.
  void finish_gather();
  // Declares that the own shard holds new values, written through master()
  // or owned(). Bumps the version counters of the parameters, as an in-place
  // update does: a graph that saved the old values must not use the new.
  void publish_shard();
  void release();

  // Bytes at rest: full storage, master copy, gradient.
  std::int64_t params_bytes() const;
  std::int64_t master_bytes() const;
  std::int64_t grad_bytes() const;

 private:
  static at::Tensor part(const at::Tensor& flat, const FlatRange& range);
  void check_state(bool is_allowed, const char* operation) const;

  ShardedUnitOptions options_;
  std::vector<ParamState> params_;
  UnitLayout layout_;
  UnitState state_ = UnitState::kUnsharded;
  std::int64_t version_ = 0;
  at::Tensor full_;
  at::Tensor master_;
  at::Tensor grad_;
  bool has_grad_ = false;
  // Shared by the units of one coalesced gather.
  std::shared_ptr<Pending> gather_;
};

}  // namespace nfold
