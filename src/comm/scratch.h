// File: scratch.h
//
// Memory that collectives work in, one at a time, kept from one to the next.
//
//   std::byte* staging = scratch.staging(slot_bytes * num_slots);
//
// Pointers are aligned to 64 bytes and valid until the next call of the same
// function. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nfold {

class Scratch {
 public:
  // At least num_bytes, uninitialised.
  std::byte* staging(std::size_t num_bytes) {
    return aligned(staging_, num_bytes);
  }
  // Full of zeros. Must not be written.
  const std::byte* zeros(std::size_t num_bytes) {
    return aligned(zeros_, num_bytes);
  }

 private:
  static std::byte* aligned(std::vector<std::byte>& memory,
                            std::size_t num_bytes) {
    constexpr std::size_t kAlignment = 64;
    if (memory.size() < num_bytes + kAlignment) {
      memory = std::vector<std::byte>(num_bytes + kAlignment);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kAlignment - address % kAlignment) % kAlignment;
  }

  std::vector<std::byte> staging_;
  std::vector<std::byte> zeros_;
};

}  // namespace nfold
