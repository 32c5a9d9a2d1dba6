// File: flat_view.h
//
// The memory of a flat tensor as the collectives see it: an array of which
// each rank owns an equal part, the last ones less if it does not divide.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nfold {

// Rank r owns the elements [r * shard_numel, (r+1) * shard_numel), cut at
// numel.
struct FlatView {
  std::byte* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Byte;
  std::int64_t numel = 0;
  std::int64_t shard_numel = 0;

  std::int64_t bytes_of(std::int64_t num_elements) const {
    return num_elements * static_cast<std::int64_t>(c10::elementSize(dtype));
  }
  std::int64_t num_bytes() const { return bytes_of(numel); }
  std::byte* shard(int rank) const {
    return data + bytes_of(std::min(rank * shard_numel, numel));
  }
  std::int64_t shard_bytes(int rank) const {
    const std::int64_t begin = std::min(rank * shard_numel, numel);
    return bytes_of(std::min(begin + shard_numel, numel) - begin);
  }
};

}  // namespace nfold
