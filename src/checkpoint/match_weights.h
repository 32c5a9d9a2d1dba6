// File: match_weights.h
//
// Which tensors of a weights file are which of a module.
#pragma once

#include <string>
#include <vector>

#include "nfold/checkpoint.h"

namespace nfold {

// A parameter or buffer. Only the tensor's sizes and dtype count.
struct WeightTarget {
  std::vector<std::string> names;  // tied ones have several
  at::Tensor tensor;
};

// For each target its tensor in the file, in the same order; they keep the
// file mapped. A target is found under any of its names. Raises nfold::IoError
// for a file that cannot be read, c10::ValueError with all missing, unexpected
// and mismatched names at once.
std::vector<at::Tensor> match_weights(const std::vector<WeightTarget>& targets,
                                      const std::string& path);

}  // namespace nfold
