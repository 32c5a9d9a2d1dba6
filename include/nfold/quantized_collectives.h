// File: nfold/quantized_collectives.h
//
// Collectives that send 8 or 4 bits for each element (nfold/quantization.h),
// for groups whose network is slower than coding. They are made of the exact
// ones, so what nfold/collectives.h says of order, errors and threads holds;
// each tensor is fp32, fp16 or bf16. Element counts and group sizes are as
// free as there: a last block may be shorter, and nothing has to divide.
//
//   quantized_all_gather_coalesced(group, {weights}).wait();
//
//   nfold::ErrorFeedback feedback;      // one for each set of tensors
//   const nfold::ReductionHops hops{&in_my_node, &across_nodes};
//   quantized_reduce_scatter_coalesced(hops, {grads}, codec, &feedback).wait();
//
// Bytes sent per rank, with E(S) = encoded_bytes(S) of the S elements of a
// shard, N = L x M ranks, L of them on each of M nodes:
//   gather             (N - 1) E(S), in all_gather
//   reduction          (L - 1) M E(S) within nodes and (M - 1) E(S) between
//                      them, both in all_to_all
// An exact reduction sends (N - L) S elements of every rank between nodes, so
// besides the smaller elements it is L times fewer of them that cross.
//
// Errors. A gather: that of one quantization, the same on every rank. A
// reduction: each contribution is quantized within its node, and the sum of a
// node once more before it is sent to another; a hop of one rank costs nothing
// and loses nothing. So of an element that is 2^-b times the largest of its
// block or less nothing may arrive: error feedback sends it later.
//
// Source: ZeRO++ (Wang et al., 2023); LoCo (Xie et al., 2024).
#pragma once

#include <ATen/core/TensorBody.h>

#include <array>
#include <cstdint>
#include <vector>

#include "nfold/collectives.h"
#include "nfold/group.h"
#include "nfold/quantization.h"

namespace nfold {

// As all_gather_coalesced: outputs[i], [N * S_i], holds this rank's shard at
// [rank * S_i, (rank + 1) * S_i) on entry. Afterwards every rank, the owner
// included, has the same values there: what the codec makes of them.
Pending quantized_all_gather_coalesced(Group& group,
                                       std::vector<at::Tensor> outputs,
                                       const BlockCodec& codec = kWeightCodec);

// The same for shards that are encoded already. `encoded`, [n * E], holds n
// shards of equal length, of which each rank has encoded equally many at its
// place; `output` is [n * S].
struct EncodedShards {
  at::Tensor output;
  at::Tensor encoded;
  std::int64_t num_shards = 1;

  // Of `encoded`, the bytes of shards [first, first + count).
  at::Tensor bytes_of(std::int64_t first, std::int64_t count) const;
};
EncodedShards empty_shards(at::Tensor output, std::int64_t num_shards,
                           const BlockCodec& codec);
// Encodes `values` as the shards from `first` on.
void encode_shards(const EncodedShards& to, std::int64_t first,
                   const at::Tensor& values, const BlockCodec& codec);
Pending all_gather_encoded(Group& group, std::vector<EncodedShards> shards,
                           const BlockCodec& codec);

// The ranks as a table with a row for each node: shard node * L + place belongs
// to rank `place` of the row `node`. Either may be null, for a table of one row
// or of one column.
struct ReductionHops {
  Group* intra_node = nullptr;  // the own row, in order
  Group* inter_node = nullptr;  // the own column, in order

  int places() const { return intra_node ? intra_node->size() : 1; }
  int nodes() const { return inter_node ? inter_node->size() : 1; }
  int rank() const;
};

// What quantization lost of earlier reductions of the same tensors, in 8 bits
// for each element that this rank encodes: as many as the tensors have, and
// 1/L of that between nodes. Movable.
class ErrorFeedback {
 public:
  struct Options {
    // An error is kept with this weight, and what is new with the rest.
    float beta = 0.8F;
    // Reductions after which all is forgotten.
    std::int64_t reset_period = 1024;
  };
  ErrorFeedback() = default;
  explicit ErrorFeedback(Options options) : options_(options) {}

  // Forgets: after gradients that were thrown away.
  void drop();
  // The next tensors are this many times larger than those before.
  void scale(float ratio);
  std::int64_t bytes() const;

 private:
  friend class QuantizedReduction;
  // Begins a reduction.
  void count();
  // Of a hop, for parts of so many elements in order.
  std::vector<at::Tensor>& errors_of(std::size_t hop,
                                     const std::vector<std::int64_t>& numels,
                                     const BlockCodec& codec);

  Options options_;
  BlockCodec codec_;
  std::int64_t count_ = 0;
  std::array<std::vector<std::int64_t>, 2> numels_;
  std::array<std::vector<at::Tensor>, 2> errors_;
};

// As reduce_scatter_coalesced, in two hops: of inputs[i], [N * S_i], the part
// of this rank holds the sum afterwards; the rest is unspecified. Not finite
// elements stay visible: their block becomes NaN. The second hop runs in
// wait(). `feedback`, which may be null, must not be used until then.
Pending quantized_reduce_scatter_coalesced(
    const ReductionHops& hops, std::vector<at::Tensor> inputs,
    const BlockCodec& codec = kGradientCodec,
    ErrorFeedback* feedback = nullptr);

}  // namespace nfold
