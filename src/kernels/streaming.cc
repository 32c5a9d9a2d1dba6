#include "kernels/streaming.h"

#include <cstring>

#include "kernels/simd.h"

namespace nfold::kernels {
namespace {

// Twice a usual second-level cache.
constexpr std::int64_t kStreamedBytes = std::int64_t{4} << 20;

}  // namespace

Stores stores_for(std::int64_t num_bytes) {
  return num_bytes < kStreamedBytes ? Stores::kCached : Stores::kStreaming;
}

void copy_bytes(void* to, const void* from, std::int64_t num_bytes,
                Stores stores) {
  if (num_bytes == 0) return;
  if (stores == Stores::kCached) {
    std::memcpy(to, from, static_cast<std::size_t>(num_bytes));
    return;
  }
  loops().stream(to, from, num_bytes);
  loops().finish_stream();
}

}  // namespace nfold::kernels
