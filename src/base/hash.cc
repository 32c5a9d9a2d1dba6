#include "base/hash.h"

#define XXH_INLINE_ALL
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <xxhash.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

Hash128 from_xxh(XXH128_hash_t hash) { return {hash.high64, hash.low64}; }

at::Tensor dense_on_cpu(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided,
                    "hash: expected a dense tensor, found ",
                    tensor.defined() ? "a sparse" : "an undefined", " one");
  return tensor.detach().to(at::kCPU).contiguous();
}

}  // namespace

std::uint64_t hash64(const void* data, std::size_t num_bytes) {
  return XXH3_64bits(data, num_bytes);
}

std::uint64_t hash64(std::string_view bytes) {
  return hash64(bytes.data(), bytes.size());
}

Hash128 hash128(const void* data, std::size_t num_bytes) {
  return from_xxh(XXH3_128bits(data, num_bytes));
}

std::uint64_t hash64(const at::Tensor& tensor) {
  const at::Tensor dense = dense_on_cpu(tensor);
  return hash64(dense.const_data_ptr(), dense.nbytes());
}

Hash128 hash128(const at::Tensor& tensor) {
  const at::Tensor dense = dense_on_cpu(tensor);
  return hash128(dense.const_data_ptr(), dense.nbytes());
}

std::string hex_of(std::uint64_t hash) { return fmt::format("{:016x}", hash); }

std::string hex_of(const Hash128& hash) {
  return fmt::format("{:016x}{:016x}", hash.high, hash.low);
}

struct Hasher::State {
  XXH3_state_t xxh;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  XXH3_INITSTATE(&state_->xxh);
  // The 64-bit and the 128-bit digest are two readings of one state.
  XXH3_128bits_reset(&state_->xxh);
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::add_bytes(const void* data, std::size_t num_bytes) {
  XXH3_128bits_update(&state_->xxh, data, num_bytes);
}

void Hasher::add_text(std::string_view text) {
  add_number(static_cast<std::int64_t>(text.size()));
  add_bytes(text.data(), text.size());
}

void Hasher::add_number(std::int64_t number) {
  add_bytes(&number, sizeof(number));
}

void Hasher::add_tensor(const at::Tensor& tensor) {
  const at::Tensor dense = dense_on_cpu(tensor);
  add_bytes(dense.const_data_ptr(), dense.nbytes());
}

std::uint64_t Hasher::digest() const {
  return XXH3_64bits_digest(&state_->xxh);
}

Hash128 Hasher::digest128() const {
  return from_xxh(XXH3_128bits_digest(&state_->xxh));
}

}  // namespace nfold
