// File: nfold/tensor_parallel.h
//
// Layers whose parameters are split over a tensor group: every rank computes
// a part of each layer for the same input. For models of which one layer is
// too large, or too slow, for one rank.
//
//   struct MlpImpl : torch::nn::Module {        // one all-reduce each way
//     MlpImpl(nfold::Group* group)
//         : up(register_module("up", nfold::ColumnParallelLinear(
//               nfold::ParallelLinearOptions{.in = 64, .out = 256}, group))),
//           down(register_module("down", nfold::RowParallelLinear(
//               nfold::ParallelLinearOptions{.in = 256, .out = 64}, group)))
//           {}
//
// In a group of one rank, or with null for a group, each is the plain layer.
//
// Initial values: every rank draws the values of the whole layer and keeps its
// part, so torch's random state must be the same on all ranks of the group
// when a layer is made (and is so afterwards). Then a model has the same
// values for any size of the group. What is not split must stay the same on
// all ranks: seed alike what is dropped out between the layers.
//
// Ranks of the group call forward in the same order, with inputs of the same
// shape. The group must outlive the layers and the graph. Not thread-safe
// (modules are not).
//
// Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter
// Language Models Using Model Parallelism".
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "nfold/group.h"
#include "nfold/placement.h"

namespace nfold {

// size / group size. Raises c10::ValueError that names `what` and both numbers
// where they do not divide.
std::int64_t size_per_rank(const Group* group, std::string_view what,
                           std::int64_t size);

// How a parameter is cut: `dim` is num_blocks blocks of equal size, one after
// the other, and each rank has an equal part of every block, in rank order.
// Three blocks: the fused projection of queries, keys and values, of which
// each rank has the three of its heads.
struct TensorSplit {
  std::int64_t dim = 0;
  std::int64_t num_blocks = 1;
};

// This rank's part, a copy; `whole` itself if the group has one rank.
at::Tensor part_of(Group* group, const at::Tensor& whole, TensorSplit split);
// The whole from the ranks' parts, on every rank. Collective, no gradient.
at::Tensor whole_of(Group* group, const at::Tensor& part, TensorSplit split);

// Implemented by the layers below, and by layers of your own: then an engine
// shards each part over the ranks that hold the same one, and split_of at the
// end of this file says how a parameter is cut.
class TensorSplitModule : public PlacedModule {
 public:
  // Of a parameter of this module. Empty: the same on every rank.
  virtual std::optional<TensorSplit> split_of(
      const std::string& param) const = 0;
  Placement placement_of(const std::string& param) const override {
    return {.is_tensor_split = split_of(param).has_value()};
  }
};

struct ParallelLinearOptions {
  std::int64_t in = 0;   // elements of the whole layer's input
  std::int64_t out = 0;  // and of its output
  bool has_bias = true;
  // The weight is [in, out], as in GPT-2's files, instead of [out, in].
  bool is_transposed = false;
  // Of the output of a ColumnParallelLinear, see TensorSplit.
  std::int64_t num_blocks = 1;
  // false: the caller has passed the input of a ColumnParallelLinear through
  // copy_to_group, once for several layers that read it.
  bool copies_input = true;
  // Fills the whole weight and bias (undefined without). Default: the values
  // of torch::nn::Linear.
  std::function<void(at::Tensor weight, at::Tensor bias)> initialize{};
};

// y = x W + b of which each rank computes its columns: x [..., in] the same on
// every rank -> [..., out / N], this rank's part.
class ColumnParallelLinearImpl : public torch::nn::Module,
                                 public TensorSplitModule {
 public:
  // Raises c10::ValueError unless out divides by num_blocks and each block by
  // the group's size.
  ColumnParallelLinearImpl(const ParallelLinearOptions& options, Group* group);

  at::Tensor forward(const at::Tensor& x);
  std::optional<TensorSplit> split_of(const std::string& param) const override;
  // This rank's part.
  const at::Tensor& weight() const { return weight_; }

 private:
  Group* group_;
  const bool is_transposed_;
  const bool copies_input_;
  const std::int64_t num_blocks_;
  at::Tensor weight_;
  at::Tensor bias_;
};
TORCH_MODULE(ColumnParallelLinear);

// y = x W + b of which each rank adds up its rows: x [..., in / N], as a
// ColumnParallelLinear leaves it -> [..., out], the same on every rank. The
// bias is not split.
class RowParallelLinearImpl : public torch::nn::Module,
                              public TensorSplitModule {
 public:
  // Raises c10::ValueError unless in divides by the group's size.
  RowParallelLinearImpl(const ParallelLinearOptions& options, Group* group);

  at::Tensor forward(const at::Tensor& x);
  std::optional<TensorSplit> split_of(const std::string& param) const override;

 private:
  Group* group_;
  const bool is_transposed_;
  at::Tensor weight_;
  at::Tensor bias_;
};
TORCH_MODULE(RowParallelLinear);

struct VocabParallelEmbeddingOptions {
  std::int64_t num_embeddings = 0;
  std::int64_t embedding_dim = 0;
  // Fills the whole table. Default: the values of torch::nn::Embedding.
  std::function<void(at::Tensor weight)> initialize{};
};

// A table of which each rank has as many rows: tokens of int64, the same on
// every rank -> [..., embedding_dim], the same on every rank.
class VocabParallelEmbeddingImpl : public torch::nn::Module,
                                   public TensorSplitModule {
 public:
  // Raises c10::ValueError unless num_embeddings divides by the group's size.
  VocabParallelEmbeddingImpl(const VocabParallelEmbeddingOptions& options,
                             Group* group);

  // Raises c10::ValueError for a token that is no row of the whole table
  // (c10::IndexError with one rank, as torch does).
  at::Tensor forward(const at::Tensor& tokens);
  std::optional<TensorSplit> split_of(const std::string& param) const override;
  // [num_embeddings / N, embedding_dim]: may also be the head of the model,
  // whose logits are then split as vocab_parallel_cross_entropy takes them.
  const at::Tensor& weight() const { return weight_; }

 private:
  Group* group_;
  at::Tensor weight_;
};
TORCH_MODULE(VocabParallelEmbedding);

// Cross entropy of every token, in fp32, of logits that are split over the
// vocabulary: logits [..., vocabulary / N] in rank order, targets [...] of
// int64, the same on every rank -> [...], the same on every rank. A target of
// -100 counts as 0. The whole logits exist nowhere: two all-reduces of a
// number or two per token. No second derivative with several ranks
// (c10::NotImplementedError).
//
// Raises c10::ValueError for shapes that do not match and a target that is no
// token.
at::Tensor vocab_parallel_cross_entropy(Group* group, const at::Tensor& logits,
                                        const at::Tensor& targets);

// How the parameter of this dotted name below `module` is cut. Empty: not.
std::optional<TensorSplit> split_of(const torch::nn::Module& module,
                                    const std::string& param);

}  // namespace nfold
