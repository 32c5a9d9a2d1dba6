// File: shard_filler.h
//
// Brings the values of parameters that a function has built without memory
// into their shards, one parameter at a time.
//
//   ShardFiller filler(mesh, model, std::move(origins));
//   filler.fill_from_tape(std::move(tape));
//
// Where the ranks have the same tape each of them computes every value, keeps
// its part and drops the rest; a value that differs is rank 0's. Where they
// have not, or only rank 0 shall compute, it sends the values.
//
// Every function is collective and may be called once.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/sharded_model.h"
#include "nfold/mesh.h"
#include "param/construction_tape.h"
#include "param/tape_replay.h"

namespace nfold {

// A parameter as the function left it.
struct ParamOrigin {
  std::string name;
  std::vector<std::string> names;
  // Not the module's tensor, which is a view of its unit's storage now.
  at::Tensor tensor;
  ParamAddress address{};
};

// Of the module's parameters before they are moved into units, in order.
std::vector<ParamOrigin> origins_of(const std::vector<ParamState>& params);

class ShardFiller : private ReplaySink {
 public:
  // `model` was made with InitialValues::kZero.
  ShardFiller(Mesh& mesh, ShardedModel& model,
              std::vector<ParamOrigin> origins);

  // Afterwards everything on the tape that is no parameter is real too.
  // Returns the names of parameters of which the ranks had other values than
  // rank 0, equal on all ranks; none if only rank 0 computed.
  std::vector<std::string> fill_from_tape(
      std::unique_ptr<ConstructionTape> tape, bool from_rank_0);
  // From tensors of a file, one for each origin; the tape is for the rest.
  void fill_from_file(std::unique_ptr<ConstructionTape> tape,
                      const std::vector<at::Tensor>& sources);

 private:
  Destination destination_of(const c10::Storage& deferred) override;
  void store(const c10::Storage& deferred, c10::Storage value) override;
  c10::Storage load(const c10::Storage& deferred) override;

  enum class Role {
    kComputes,  // as every other rank
    kSends,     // to ranks that receive
    kReceives,
    kReads,  // a file
  };

  void start(const ConstructionTape& tape, Role role);
  void run(std::unique_ptr<ConstructionTape> tape);
  void receive_all();
  // The value of one parameter has been computed, or is there.
  void deliver(std::size_t origin, at::Tensor value);
  void write(std::size_t origin, const at::Tensor& value);
  at::Tensor gathered(std::size_t origin);
  ShardedUnit& unit_of(std::size_t origin);
  bool has_experts() const;

  // What rank 0 tells the ranks that receive to do next.
  enum class Command : std::int64_t { kValue, kPieces, kDone, kFailed };
  void announce(Command command, std::size_t origin = 0);

  Group& group_;         // of all ranks that build the module
  Group* tensor_group_;  // those with other parts of split layers; or null
  ShardedModel& model_;
  std::vector<ParamOrigin> origins_;
  Role role_ = Role::kComputes;
  // Origins on each storage that comes through store().
  std::unordered_map<const c10::StorageImpl*, std::vector<std::size_t>>
      by_storage_;
  // Own pieces of what the units hold rounded only: a later operator of the
  // tape may need them.
  std::unordered_map<std::size_t, at::Tensor> unrounded_;
  std::vector<std::string> differing_;
};

}  // namespace nfold
