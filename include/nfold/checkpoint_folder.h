// File: nfold/checkpoint_folder.h
//
// Folders that checkpoints are written to.
//
//   nfold::ensure_directory_exists("runs/7/step100/model.safetensors");
//   save_weights(*model, "runs/7/step100/model.safetensors");
//   log(nfold::get_checkpoint_folder_size(world, "runs/7", "step100"));
#pragma once

#include <cstdint>
#include <string>

#include "nfold/world.h"

namespace nfold {

// Makes the folder that the file is to be in, and all above it. Fine if it is
// there already, also if another process makes it at the same time. Raises
// IoError with the folder's name if it cannot be made.
void ensure_directory_exists(const std::string& file);

// Bytes of the files in a folder and those below it. Raises IoError.
std::int64_t folder_size_bytes(const std::string& folder);

// Bytes of the files in save_dir/tag on all hosts, on every rank: each host
// has a folder of its own, which its local rank 0 counts. Where hosts share
// one, it is counted as often. Collective over the world. Raises IoError on
// every rank if a folder cannot be read.
std::int64_t get_checkpoint_folder_size(const World& world,
                                        const std::string& save_dir,
                                        const std::string& tag);

}  // namespace nfold
