// File: nfold/differentiable_collectives.h
//
// Collectives as autograd functions: what a layer whose parameters or
// activations are split over a group calls in its forward pass. Backward
// issues the collective that the gradient needs.
//
//   // y = gelu(x A) B, A split by columns and B by rows (Megatron-LM)
//   auto h = at::gelu(at::matmul(nfold::copy_to_group(group, x), a_part));
//   auto y = nfold::reduce_from_group(group, at::matmul(h, b_part));
//
//   function            forward                   backward
//   copy_to_group       identity                  all-reduce (sum)
//   reduce_from_group   all-reduce (sum)          identity
//   split_to_group      own chunk                 all-gather
//   gather_from_group   all-gather                own chunk
//   all_to_all          all-to-all                all-to-all the other way
//
// Each is the backward of its partner, so double backward works as well. In a
// group of one rank, or with null for a group, each returns its input.
//
// All ranks of the group must call each in the same order, with tensors of
// one dtype and shape that require a gradient alike, and run backward alike:
// a rank whose loss does not depend on a result leaves the others waiting
// until the group's time-out. In nfold::checkpoint the second run issues the
// collectives again, on all ranks alike. Input may have any strides; the
// result shares memory with it only where nothing is exchanged. Each call
// returns when its collective is complete. The group must outlive the graph.
//
// Every function raises c10::ValueError, before anything is sent, for sizes
// that do not divide by the group's, and what nfold/collectives.h raises.
//
// Sources: Shoeybi et al., "Megatron-LM" (the functions f and g; there
// copy_to, reduce_from, scatter_to and gather_from_tensor_model_parallel_
// region); Jacobs et al., "DeepSpeed Ulysses" (_SeqAllToAll); Lepikhin et
// al., "GShard" (the all-to-all of experts).
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

#include "nfold/group.h"

namespace nfold {

// Before a layer of which each rank computes a part from the whole input: the
// parts of the input's gradient are summed.
at::Tensor copy_to_group(Group* group, const at::Tensor& input);

// The sum of the ranks' inputs, on every rank. What follows must compute the
// same on every rank, so that the gradient is the same.
at::Tensor reduce_from_group(Group* group, const at::Tensor& input);

// The chunk of this rank, of as many equal chunks as the group has ranks. The
// input must be the same on every rank. Size of `dim` divides by the group's.
at::Tensor split_to_group(Group* group, const at::Tensor& input,
                          std::int64_t dim = -1);

// The ranks' inputs, joined along `dim` in rank order. What follows must
// compute the same on every rank, so that the gradient is the same.
at::Tensor gather_from_group(Group* group, const at::Tensor& input,
                             std::int64_t dim = -1);

// Cuts `scatter_dim` into as many equal chunks as the group has ranks, sends
// chunk i to rank i, and joins what came along `gather_dim` in rank order.
// Size of `scatter_dim` divides by the group's.
//
// With both 0, chunks of rows change their places: [N * S, ...] stays
// [N * S, ...]. With two dimensions, a tensor split along gather_dim becomes
// one split along scatter_dim: [batch, heads, length / N, head_dim] becomes
// [batch, heads / N, length, head_dim] by all_to_all(group, x, 1, 2).
at::Tensor all_to_all(Group* group, const at::Tensor& input,
                      std::int64_t scatter_dim = 0,
                      std::int64_t gather_dim = 0);

}  // namespace nfold
