// File: nfold/host_memory.h
//
// A cache between torch's CPU tensors and the system.
//
// Tensors of a training step are made and freed again in every step. Without a
// cache the system takes large ones back each time and clears their pages when
// they come again, which was measured to be a quarter of a step. With it they
// stay, in huge pages where the system permits those, and a steady step asks
// the system for nothing. The process keeps no more than it had in use at once,
// or at most an eighth more where blocks of a step do not fit otherwise (see
// src/memory/block_pool.h), so its peak is nearly as without. Tensors below
// 256 KiB stay with the C library's malloc, which by itself gives its heap back
// in each step too; it is told to keep up to 256 MiB of it.
//
// An Engine and nfold::init turn it on, for the whole process, unless the
// configuration says "cache_host_memory": false. It serves what is allocated
// from then on; tensors from before are freed as they were made.
//
// Callable from any thread.
#pragma once

#include <cstdint>

namespace nfold {

struct HostMemoryStats {
  std::int64_t in_use_bytes = 0;    // by tensors that the cache serves
  std::int64_t resident_bytes = 0;  // these and what is kept for later
  std::int64_t reused = 0;          // allocations served from what was kept
  std::int64_t fresh = 0;           // allocations that the system had to clear
};

// Puts the cache in front of torch's CPU allocator. Idempotent. False, and
// nothing happens, where the program has an allocator of its own, and in
// builds with a sanitizer, whose findings a cache would hide.
bool enable_host_cache();

// Gives what is kept and not in use back to the system.
void release_host_cache();

// Zeros as long as it is not enabled.
HostMemoryStats host_memory_stats();

}  // namespace nfold
