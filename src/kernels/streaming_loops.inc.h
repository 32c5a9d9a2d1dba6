// File: streaming_loops.inc.h
//
// Copies whose stores go past the caches. Part of loops.inc.h.

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace nfold::kernels {
namespace {

#if defined(__AVX512F__)
using StreamWord = __m512i;
inline void stream_word(StreamWord* to, const StreamWord* from) {
  _mm512_stream_si512(to, _mm512_loadu_si512(from));
}
#elif defined(__AVX2__)
using StreamWord = __m256i;
inline void stream_word(StreamWord* to, const StreamWord* from) {
  _mm256_stream_si256(to, _mm256_loadu_si256(from));
}
#elif defined(__SSE2__)
using StreamWord = __m128i;
inline void stream_word(StreamWord* to, const StreamWord* from) {
  _mm_stream_si128(to, _mm_loadu_si128(from));
}
#endif

#if defined(__SSE2__)
void stream_loop(void* to, const void* from, std::int64_t num_bytes) {
  constexpr std::int64_t kWord = sizeof(StreamWord);
  auto* destination = static_cast<unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  const auto past =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) % kWord);
  std::int64_t i = past == 0 ? 0 : kWord - past;
  if (i > num_bytes) i = num_bytes;
  __builtin_memcpy(destination, source, static_cast<std::size_t>(i));
  for (; i + kWord <= num_bytes; i += kWord) {
    stream_word(reinterpret_cast<StreamWord*>(destination + i),
                reinterpret_cast<const StreamWord*>(source + i));
  }
  __builtin_memcpy(destination + i, source + i,
                   static_cast<std::size_t>(num_bytes - i));
}

void finish_stream() { _mm_sfence(); }
#else
void stream_loop(void* to, const void* from, std::int64_t num_bytes) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(num_bytes));
}

void finish_stream() {}
#endif

}  // namespace
}  // namespace nfold::kernels
