// File: nfold/norms.h
//
// Norms of gradients, weights and other lists of tensors: on one rank, over
// the groups among which a model is split, and one norm from many.
//
//   nfold::NormOptions options{.groups = {.model = &tensor_group}};
//   options.placements = placements;          // one for each parameter
//   const double norm = nfold::get_weight_norm(params, options);
//   if (!nfold::is_valid_norm(norm)) skip_step();
//
// A norm is invalid when it is negative, infinite or NaN: an element somewhere
// was not finite. Everything is computed in fp64. Tensors are CPU tensors of
// any floating dtype. The names are DeepSpeed's, those of the first part
// aside; docs/from_deepspeed.md has the table.
//
// Functions that take groups are collective: every rank of each group given
// must call them with the same options. Those without run on this rank alone.
// Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nfold/graph_replay.h"
#include "nfold/group.h"
#include "nfold/placement.h"

namespace nfold {

// What a norm is when an element is not finite, unless another value is named.
inline constexpr double kInvalidNorm = -1;

bool is_valid_norm(double norm);

// (sum of |x|^p over all elements)^(1/p); the largest |x| for p = +infinity.
// Undefined tensors are left out. kInvalidNorm when an element is not finite.
// Raises c10::ValueError unless p is above 0.
double norm_of(at::ArrayRef<at::Tensor> tensors, double p = 2);

// (sum of norm^p)^(1/p), the largest for p = +infinity: [3, 4] -> 5, [] -> 0.
// +infinity with an invalid norm, so that a -1 among them cannot be taken for
// a small number.
double combine_norms(at::ArrayRef<double> norms, double p = 2);

// Elements that are infinite or NaN become `value`, in place.
void mask_nan_or_inf(const at::Tensor& tensor, double value = -1);

// Among which ranks the tensors of a norm are split. Null: they are not.
struct NormGroups {
  Group* model = nullptr;     // tensor (model) parallel
  Group* data = nullptr;      // data parallel
  Group* pipeline = nullptr;  // pipeline parallel
  Group* expert = nullptr;    // the ranks that share out these experts
  // Ranks among which one expert is split.
  int expert_tensor_size = 1;
};

struct NormOptions {
  double p = 2;
  NormGroups groups{};
  // One for each tensor given, or empty: all are copies. With a model group,
  // copies count on its rank 0 only, and split tensors on every rank.
  std::vector<Placement> placements{};
  // One for each tensor given, or empty: none. A parameter of which another
  // pipeline stage has a copy that counts; left out.
  std::vector<bool> is_pipeline_replica{};
  // Computes this rank's part as a graph: the tensors must then stay where
  // they are from call to call. Sums in another order: the last bit may
  // differ. May be null.
  GraphReplay* graph = nullptr;
};

// Of the values of parameters. Each counts once in the model group, over which
// sums (the maximum, for p = +infinity) are taken. kInvalidNorm if not finite.
double get_weight_norm(at::ArrayRef<at::Tensor> params,
                       const NormOptions& options = {});

// How many elements of the gradients are zero; who counts is as above.
// Parameters without gradient are left out.
std::int64_t get_grad_zeros(at::ArrayRef<at::Tensor> params,
                            const NormOptions& options = {});

// Elements [begin, end) of a flat tensor.
struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Of the gradients of flat parameters that hold each element of the model on
// one rank of the model group, except for those that `masks` takes out: ranges
// for each parameter, or empty. They may overlap. Parameters without gradient
// are left out, placements are not looked at. kInvalidNorm if not finite.
double get_flattened_grad_norm(
    at::ArrayRef<at::Tensor> params, const NormOptions& options = {},
    const std::vector<std::vector<IndexRange>>& masks = {});

// Of tensors that all count. For experts (an expert group is given) sums go
// over the model group only if experts are split among tensor ranks, else over
// the pipeline group if there is one, and then over the expert group; for
// others over the model group. kInvalidNorm if not finite. Raises
// c10::ValueError for an undefined tensor.
double get_global_norm_of_tensors(at::ArrayRef<at::Tensor> tensors,
                                  const NormOptions& options = {});

struct ExpertTensors {
  std::vector<at::Tensor> tensors;
  Group* group = nullptr;  // the expert group that shares them out
};

// One norm of a model with experts, from that of all else and the tensors of
// each expert group by name. kInvalidNorm if any is invalid.
double get_norm_with_moe_layers(
    double non_expert_norm,
    const std::map<std::string, ExpertTensors>& expert_tensors,
    const NormOptions& options = {});

// The mean of the ranks' norms: cheap, and equal on all ranks, though not the
// norm of anything when ranks hold different experts. +infinity if that of any
// rank is invalid.
double get_norm_with_moe_layers_fast(double norm, Group& group);

}  // namespace nfold
