// File: norm_power.h
//
// The steps of a norm that is completed over groups: the power sum of a rank's
// tensors, the sum of those, the root.
//
//   double power = norm_power(counted_once(tensors, options), p);
//   power = reduced_power(power, p, options.groups.model);
//   return norm_from_power(power, p);
//
// The power sum of p is the sum of |x|^p; for p = +infinity the largest |x|.
// What is not finite stays so in each step.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/ArrayRef.h>

#include <vector>

#include "nfold/graph_replay.h"
#include "nfold/group.h"
#include "nfold/norms.h"

namespace nfold {

// Raises c10::ValueError unless p is above 0.
void check_norm_power(double p);

// Which graph a power sum is, if it is to be one.
struct PowerGraph {
  GraphReplay* graph = nullptr;
  // Of the calling function; see GraphCall.
  const void* identity = nullptr;
  // Of the list among several that one call of it sums.
  double index = 0;
};

double norm_power(at::ArrayRef<at::Tensor> tensors, double p,
                  const PowerGraph& as_graph = {});
double norm_from_power(double power, double p);

// Over the ranks of a group, if there is one. Collective.
double reduced_power(double power, double p, Group* group);

// The tensors that this rank counts, by the placements of the options. Raises
// c10::ValueError when these are not one for each tensor.
std::vector<at::Tensor> counted_once(at::ArrayRef<at::Tensor> tensors,
                                     const NormOptions& options);

// The gradients in the place of their parameters, undefined where there is
// none.
std::vector<at::Tensor> grads_of(at::ArrayRef<at::Tensor> params);

}  // namespace nfold
