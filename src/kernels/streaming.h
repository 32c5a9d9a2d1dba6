// File: streaming.h
//
// Stores that go past the caches. A store to a line that is in no cache first
// reads the line from memory, for nothing if all of it is overwritten, and
// evicts something else. Streaming stores do neither; they cost where the
// destination is read again soon.
//
//   const Stores stores = stores_for(total_bytes);
//   copy_bytes(to, from, num_bytes, stores);
//
// Measured, 64 MiB in pieces of 256 KiB from a buffer in cache, one thread with
// AVX-512: copying 12 to 16 GB/s, streaming 21; adding one more buffer 6.7 and
// 11.5 to 12.
#pragma once

#include <cstdint>

namespace nfold::kernels {

enum class Stores : std::uint8_t { kCached, kStreaming };

// What pays for an output of so many bytes in all, most of which will have left
// the caches when it is read.
Stores stores_for(std::int64_t num_bytes);

// The ranges must not overlap. When it returns other threads may be told.
void copy_bytes(void* to, const void* from, std::int64_t num_bytes,
                Stores stores);

}  // namespace nfold::kernels
