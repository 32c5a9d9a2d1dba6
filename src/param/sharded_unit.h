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
//   shard         full[rank * S, (rank + 1) * S): what this rank sends when
//                 the unit is gathered. Where `full` is resident (stages 0 to
//                 2) a part of it, else a tensor of its own, which outlives
//                 the memory of `full`.
//   owned         the values of the owned range: full[owned range], or the
//                 shard where that has memory of its own.
//   master        [owned numel]: the weights the optimizer updates. `owned`
//                 itself where its precision suffices, else an fp32 copy that
//                 holds the values the model was built with, unrounded.
//   grad          [owned numel], accumulation dtype: gradients of the owned
//                 range, summed over ranks and micro steps, up to one
//                 constant factor that the optimizer applies.
//   shared      where the ranks of the shard group share memory, one array
//               [numel] for all of them, of which `shard` is this rank's part
//               (comm/shared_array.h). Then `full` is that array while the
//               unit is unsharded: gathering copies nothing and needs no
//               partner, only parts that are up to date.
//   secondary   full[j * T, (j + 1) * T), for rank j of a secondary group:
//               a copy kept when the unit is released, so that it can be
//               gathered again among few ranks until its values change.
//
// With a codec shards travel as its bytes, and `full` is what these come back
// as, on every rank the same, while shard and master keep their precision; a
// gather may ask for exact values instead. A secondary shard is bytes then, and
// so is the shard of a unit that rests encoded. The codec gives bytes that were
// decoded the same bytes again, so it does not matter who encodes.
//   owned == round(master) to the unit's dtype, whenever no step is under
//   way.
//
// State machine. Only begin_gather, finish_gather, release and publish_shard
// change the state; each checks that the row allows it.
//
//   state \ op | begin_gather | finish_gather | release      | publish_shard
//   -----------+--------------+---------------+--------------+--------------
//   sharded    | -> gathering | invalid       | no-op        | version + 1
//   gathering  | no-op        | -> unsharded  | invalid      | invalid
//   unsharded  | no-op        | no-op         | -> sharded,  | version + 1,
//              |              |               | or secondary | -> sharded
//              |              |               | with such a  |
//              |              |               | group (not   |
//              |              |               | if resident) |
//   secondary  | -> gathering | invalid       | no-op        | version + 1,
//              |              |               |              | -> sharded
//
//   state      | current values     | memory: resident | not resident
//   -----------+--------------------+------------------+--------------
//   sharded    | the shard          | full             | shard
//   gathering  | the shard          | full             | shard + full
//   unsharded  | full and the shard | full             | shard + full
//   secondary  | it and the shard   | -                | shard + secondary
//
// With a secondary group, gathering and unsharded units have the memory of
// the secondary shard too if they were gathered from it. Shared units have the
// memory of their shard in every state.
//
// A unit that is not resident starts sharded. While it is sharded its
// parameters keep their sizes, but their storage has no memory: raw access
// (data_ptr) is an error that names the parameters. With one shard, or when
// this rank owns everything, a resident unit is always unsharded.
//
// [Note: Updates]
// Values of shards change between begin_update and publish_shard (or inside of
// publish_full), which all ranks of the group call equally often. begin_update
// waits for the others where they may still read the old values.
//
// Not thread-safe; one thread at a time drives a unit.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/shared_array.h"
#include "layout/unit_layout.h"
#include "nfold/collectives.h"
#include "nfold/quantization.h"
#include "param/param_state.h"
#include "param/unit_groups.h"

namespace nfold {

enum class UnitState { kSharded, kGathering, kUnsharded, kSecondary };
const char* name_of(UnitState state);

// How the shards of all ranks become `full`. kExact sends them as they rest
// though the unit has a codec, from the primary shards. kAllReduce sums shards
// that are zero everywhere else: more bytes, the same values; exact too.
enum class GatherMode { kAllGather, kExact, kAllReduce };

struct ShardedUnitOptions {
  std::string name;
  at::ScalarType dtype = at::kFloat;  // of `full`
  // Of `master`; `owned` serves as master when it is the unit's dtype.
  at::ScalarType master_dtype = at::kFloat;
  at::ScalarType grad_dtype = at::kFloat;
  int rank = 0;        // in the shard group
  int num_shards = 1;  // its size
  bool owns_whole_range = false;
  // `full` keeps its memory in every state. false needs owns_whole_range to
  // be false too.
  bool is_resident = true;
  bool is_trained = true;  // false: no master, no grad
  // What shards travel in; symmetric. Not for resident units: their `full` is
  // what this rank owns too.
  std::optional<BlockCodec> codec{};
  // The shard rests so too. Only for what is not trained.
  bool rests_encoded = false;
  UnitGroups groups;  // needed to communicate only

  bool operator==(const ShardedUnitOptions&) const = default;
};

// What a new unit holds: the parameters' values, or zeros until they come
// through write_param.
enum class InitialValues { kFromParams, kZero };

class ShardedUnit {
 public:
  // Makes every tensor of every parameter a view of a new flat storage. With
  // kZero the parameters need no memory.
  ShardedUnit(std::vector<ParamState> params, ShardedUnitOptions options,
              InitialValues initial = InitialValues::kFromParams);
  ShardedUnit(const ShardedUnit&) = delete;
  ShardedUnit& operator=(const ShardedUnit&) = delete;

  // Whether a unit of these options rests in memory that the ranks share, if
  // they can: gathers over few ranks, between nodes and with a codec are for
  // ranks that are far apart.
  static bool shares_memory(const ShardedUnitOptions& options);

  const std::string& name() const { return options_.name; }
  const ShardedUnitOptions& options() const { return options_; }
  const UnitLayout& layout() const { return layout_; }
  const std::vector<ParamState>& params() const { return params_; }
  FlatRange owned_range() const;
  // What of the unit has memory at rest: all of it, or the shard.
  FlatRange held_range() const;

  UnitState state() const { return state_; }
  // Has to be gathered before it can be used.
  bool is_released() const {
    return state_ == UnitState::kSharded || state_ == UnitState::kSecondary;
  }
  // `full` has the values that rest in the shards, not what a codec made of
  // them. Of a unit that is whole.
  bool is_exact() const { return is_exact_; }
  // Counts publish_shard; readers on other ranks will wait for it.
  std::int64_t version() const { return version_; }

  const at::Tensor& full() const { return full_; }
  // Of a unit that rests encoded: decoded, until it is gathered or published.
  at::Tensor owned() const;
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
  // Allocates what stays from step to step, before buckets come and go: memory
  // that stays would else split theirs.
  void reserve_grad();
  // Where a reduction may put this rank's part of a gradient of that dtype, so
  // that it need not be accumulated: grad, if the next contribution is the
  // first and would only be copied there. Else undefined.
  at::Tensor place_for_first_grad(at::ScalarType dtype, float scale);
  // The gradient is there.
  void accept_first_grad() { has_grad_ = true; }
  void clear_grad();

  // Starts filling `full` from the shards of the unit's group. Collective.
  // Several units may be gathered in one call; there is one collective for
  // each dtype and way among them. Between nodes the call waits.
  static void begin_gather(std::vector<ShardedUnit*> units,
                           GatherMode mode = GatherMode::kAllGather);
  // Over which groups that communicates as the unit is now: one, or in this
  // order those between and within nodes.
  c10::SmallVector<Group*, 2> gather_groups(
      GatherMode mode = GatherMode::kAllGather) const;
  // Waits for it.
  void finish_gather();
  // Before values change: what is whole is given up, and where the others read
  // the shard itself they must have come here too.
  void begin_update();
  // Declares that the own shard holds new values, written through master()
  // or owned(). Bumps the version counters of the parameters, as an in-place
  // update does: a graph that saved the old values must not use the new.
  void publish_shard();
  // Frees what is not needed to gather again. Keeps a secondary shard, if there
  // is a group for it, until publish_shard or publish_full.
  void release();
  // Declares that `full` of an unsharded unit holds new values of these of its
  // parameters, the same on all ranks: shard and master follow. The unit stays
  // unsharded. Bumps version counters as publish_shard does. With a codec full
  // must be exact.
  void publish_full(const std::vector<std::size_t>& params);
  // Sets elements [begin, begin + numel) of a parameter, wherever they are held
  // here, before publish_initial. values: [numel], any dtype; rounded for the
  // unit's dtype, not for the master.
  void write_param(std::size_t param, std::int64_t begin,
                   const at::Tensor& values);
  // Declares that the unit has its first values. With kFromParams it had them
  // when it was made.
  void publish_initial();
  // Gives an unsharded unit memory of its own, if it is shared: what is
  // written to it is seen by nobody else. Until it is released.
  void unshare();
  // Bytes at rest: full storage or shard (and secondary shard, while there is
  // one), master copy, gradient.
  std::int64_t params_bytes() const;
  // Bytes that being unsharded takes beyond those: 0 for a resident or shared
  // unit.
  std::int64_t full_bytes() const;
  std::int64_t master_bytes() const;
  std::int64_t grad_bytes() const;

 private:
  static at::Tensor part(const at::Tensor& flat, const FlatRange& range);
  FlatRange shard_range_of_rank() const {
    return shard_range(layout_, options_.rank);
  }
  // What of `full` this rank gives when the unit is gathered as it is now.
  FlatRange given_range() const;
  FlatRange secondary_range() const;
  static Pending gather(const std::vector<ShardedUnit*>& units,
                        GatherMode mode);
  static Pending gather_encoded(const std::vector<ShardedUnit*>& units);
  bool travels_with(const ShardedUnit& other, GatherMode mode) const;
  bool travels_encoded(GatherMode mode) const;
  bool uses_secondary(GatherMode mode) const;
  // Encodes the shard of a unit that rests encoded, if it has been decoded, or
  // was never encoded: units are made with what they hold as it is.
  void rest_shard();
  // Of a range of whole shards, one after the other.
  at::Tensor encoded(const FlatRange& range, const at::Tensor& values) const;
  // As floats, in whatever form it rests.
  const at::Tensor& decoded_shard() const;
  std::string access_error() const;
  void allocate_values();
  void allocate_shared();
  c10::DataPtr shared_memory() const;
  void allocate_grad();
  void allocate_full(bool is_encoded);
  void free_full();
  void bump_versions();
  void check_state(bool is_allowed, const char* operation) const;

  ShardedUnitOptions options_;
  std::vector<ParamState> params_;
  UnitLayout layout_;
  UnitState state_ = UnitState::kUnsharded;
  std::int64_t version_ = 0;
  at::Tensor full_;
  // Undefined if resident. Of a unit that rests encoded exactly one of the two
  // is defined: which one changes what is held, not the values.
  mutable at::Tensor shard_;
  mutable at::Tensor encoded_shard_;
  std::shared_ptr<SharedArray> shared_;  // null if memory is not shared
  bool is_unshared_ = false;  // `full` has memory of its own all the same
  at::Tensor secondary_;      // undefined unless it has the current values
  bool is_exact_ = true;
  at::Tensor master_;
  at::Tensor grad_;
  bool has_grad_ = false;
  // Shared by the units of one coalesced gather.
  std::shared_ptr<Pending> gather_;
};

}  // namespace nfold
