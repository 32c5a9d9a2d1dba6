// File: grad_reducer.h
//
// Reduces gradients over ranks while backward runs.
//
//   GradReducer reducer(all, units, options);
//   reducer.begin("step 12, micro step 0");
//   loss.backward();           // hooks fill buckets and launch them
//   reducer.finish(true);      // the rest; unit->grad() is reduced
//
// [Note: Order of buckets]
// A hook on each parameter's gradient accumulator moves the gradient into its
// bucket and frees it. A bucket is launched when all its parameters have
// arrived and all buckets before it were launched; finish() launches what is
// left. So every rank launches the same collectives in the same order,
// whatever its graph did: a parameter that a rank did not use counts as zero,
// and a bucket that is empty on a rank sends nothing. No option for unused
// parameters is needed, and branches that differ between ranks cannot hang,
// unless backward itself waits for other ranks (the layers of nfold/moe.h):
// there a hook may wait for the bucket of a rank that waits for this one.
//
// A parameter that arrives again after its bucket was launched (a backward
// inside a backward) goes to a late buffer; finish() agrees on which buckets
// have one anywhere and reduces those once more.
//
// At most one bucket is under way while the next fills, so buckets take at
// most the memory of two.
//
// Not thread-safe apart from the hooks, which autograd may run on any one
// thread at a time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "grad/grad_bucket.h"
#include "nfold/collectives.h"
#include "nfold/quantized_collectives.h"
#include "param/sharded_unit.h"

namespace nfold {

struct GradReducerOptions {
  // Elements of one bucket; whole units, so one unit may exceed it.
  std::int64_t bucket_numel = std::int64_t{1} << 24;
  // Of the collective; undefined: the unit's dtype.
  std::optional<at::ScalarType> comm_dtype;
  // false: each bucket is waited for when it is launched.
  bool overlaps_backward = true;
  // true: sum everything everywhere (all_reduce), though only a shard may be
  // needed. Same values as reduce_scatter, twice the bytes.
  bool all_reduces = false;
  // true: micro steps accumulate locally at full size, and only the boundary
  // reduces. Fewer bytes, more memory, another rounding.
  bool reduces_at_boundary = false;
  // Applied to each rank's gradient before the sum, and to the sum.
  float scale_before = 1.0f;
  float scale_after = 1.0f;
  // false: a parameter without gradient is an error.
  bool allows_unused = true;
  // What gradients travel in, in two hops where the unit's groups have them;
  // fp64 travels as it is. Does not go with all_reduces.
  std::optional<BlockCodec> codec{};
  // Of quantization: what a reduction lost is sent with the next one.
  std::optional<ErrorFeedback::Options> feedback{};
};

// The first non-finite value that this rank's backward produced.
struct NonFiniteGrad {
  std::size_t unit = 0;
  std::size_t param = 0;
  std::int64_t element = 0;
  double value = 0;
};

class GradReducer {
 public:
  // Each unit is reduced over its own shard group; `all` are the ranks that
  // train the model.
  GradReducer(Group& all, std::vector<ShardedUnit*> units,
              GradReducerOptions options);
  ~GradReducer();
  GradReducer(const GradReducer&) = delete;
  GradReducer& operator=(const GradReducer&) = delete;

  // Every rank must call begin and finish equally often. `label` is where
  // training stands; it appears in errors of the collectives.
  void begin(std::string label);
  // is_boundary matters to reduces_at_boundary only.
  void finish(bool is_boundary);
  // After an exception in backward: drops everything that was collected,
  // gradients of earlier micro steps included.
  void reset();

  const std::optional<NonFiniteGrad>& non_finite() const { return non_finite_; }
  void clear_non_finite() { non_finite_.reset(); }

  // Error feedback belongs to gradients of one loss scale: the next ones are
  // `ratio` times larger, or those before were thrown away.
  void scale_feedback(double ratio);
  void drop_feedback();

  std::int64_t peak_bytes() const { return peak_bytes_; }
  // Bytes of locally accumulated gradients (reduces_at_boundary).
  std::int64_t local_bytes() const;
  // Bytes of errors kept for the next reduction.
  std::int64_t feedback_bytes() const;
  // How long callers stood still for a bucket, in total.
  std::chrono::nanoseconds wait_time() const { return wait_time_; }
  std::size_t num_buckets() const { return buckets_.size(); }

 private:
  struct Bucket {
    std::vector<std::size_t> units;
    Group* group = nullptr;
    bool is_launched = false;
    // How it travels quantized; neither hop if it does not.
    ReductionHops hops{};
    std::unique_ptr<ErrorFeedback> feedback{};
    bool is_quantized() const { return hops.intra_node || hops.inter_node; }
  };
  // What one launch of a bucket has under way.
  struct Launch {
    std::size_t bucket = 0;
    std::vector<at::Tensor> flats{};  // one for each unit
    // Defined where the sum goes right to the unit.
    std::vector<at::Tensor> places{};
    std::vector<Pending> pendings{};
    std::int64_t bytes = 0;
  };
  struct Slot {
    std::unique_ptr<UnitGradBuffer> buffer;
    std::unique_ptr<UnitGradBuffer> late;
    // reduces_at_boundary: the sum of micro steps so far.
    std::unique_ptr<UnitGradBuffer> local;
    std::size_t bucket = 0;
  };
  // One tensor of one parameter of one unit.
  struct Address {
    std::size_t unit = 0;
    std::size_t param = 0;
    std::size_t tensor = 0;
  };

  Bucket bucket_of(std::vector<std::size_t> units) const;
  at::ScalarType comm_dtype_of(std::size_t unit) const;
  void reduce(Bucket& bucket, Launch& launch, bool is_empty, bool is_late);
  void add_hooks();
  // `arrived`: what autograd added to the parameter's gradient just now.
  void on_grad(const Address& address, const at::Tensor& arrived);
  void note_non_finite(const Address& address, const at::Tensor& grad);
  void check_all_used() const;
  bool is_complete(const Bucket& bucket) const;
  void launch_complete();
  void launch(std::size_t bucket, bool is_late);
  void finish_launch();
  void reduce_late();
  std::vector<bool> late_buckets();
  void note_bytes();

  Group& all_;
  std::vector<ShardedUnit*> units_;
  GradReducerOptions options_;
  std::vector<Slot> slots_;  // one for each unit
  std::vector<Bucket> buckets_;
  std::size_t next_bucket_ = 0;
  bool is_active_ = false;
  std::string label_;
  std::optional<Launch> under_way_;
  std::optional<NonFiniteGrad> non_finite_;
  std::int64_t peak_bytes_ = 0;
  std::chrono::nanoseconds wait_time_{0};
  std::mutex mutex_;
  // Keeps the accumulators alive (autograd holds them weakly) and tells
  // hooks that outlive the reducer to do nothing.
  struct HookOwner;
  std::shared_ptr<HookOwner> hooks_;
};

}  // namespace nfold
