// File: nfold/checkpoint.h
//
// Tensors and weights in files of the safetensors format, which most other
// software reads. Use it to hand weights on or to start from given ones.
//
//   nfold::save_weights(*model, "run/model.safetensors");
//   nfold::load_weights(*model, "run/model.safetensors");
//
// Writing is atomic: the data goes to a file beside the target, is flushed to
// the disk and then renamed, so that the target is either the old file or the
// whole new one, also after a crash or with a full disk.
//
// Reading trusts nothing: a file that is truncated, damaged or made to harm
// is an nfold::IoError that names the file, the tensor and what is wrong.
//
// One rank should write; any number may read. Functions on different files
// may run in different threads. Sharded training state is not saved here.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace nfold {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct SafetensorsContent {
  // In the order of the file's data.
  NamedTensors tensors;
  std::map<std::string, std::string> metadata;

  // Undefined if there is no such tensor.
  at::Tensor find(const std::string& name) const;
};

// Writes tensors of any device, strides and dtype that the format has, in an
// order and with bytes that depend on the arguments only. Replaces the file.
// Raises c10::ValueError for a duplicate or reserved name or a dtype that the
// format lacks, nfold::IoError if the file cannot be written.
void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata = {});

// Maps the file: reading is lazy, and the tensors keep the mapping alive. They
// may be changed without changing the file. The file must not be truncated
// while they live; replacing it with save_safetensors is fine.
// Raises nfold::IoError.
SafetensorsContent load_safetensors(const std::string& path);

// Writes parameters and buffers under their names. A tensor with several names
// (tied parameters) is written once, under the first; the others are kept in
// the metadata under kAliasesKey as a JSON object, alias -> name. Sharded
// parameters (stage 3) must be whole: open GatheredParameters over all of them
// on every rank, and save on one.
void save_weights(const torch::nn::Module& module, const std::string& path,
                  std::map<std::string, std::string> metadata = {});

inline constexpr const char* kAliasesKey = "nfold.aliases";

// Copies the file's tensors into the module's parameters and buffers, in
// place; dtypes are converted to floating-point ones of the module. Call it
// before an Engine is made, on every rank. A tensor that is tied in the module
// is found under any of its names. Raises c10::ValueError, with all missing,
// unexpected and mismatched names at once and before anything is changed.
void load_weights(torch::nn::Module& module, const std::string& path);

}  // namespace nfold
