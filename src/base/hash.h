// File: hash.h
//
// XXH3 of bytes: fast, the same on every machine, not cryptographic.
//
//   std::uint64_t a = nfold::hash64("layers.0.weight");
//   nfold::Hasher hasher;
//   hasher.add_text(name);
//   hasher.add_number(numel);
//   std::uint64_t b = hasher.digest();
//
// The functions are pure. A Hasher belongs to one thread at a time.
#pragma once

#include <ATen/core/TensorBody.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace nfold {

struct Hash128 {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const Hash128&) const = default;
};

std::uint64_t hash64(const void* data, std::size_t num_bytes);
std::uint64_t hash64(std::string_view bytes);
Hash128 hash128(const void* data, std::size_t num_bytes);

// Of the elements in order, whatever the strides and the device; neither
// sizes nor dtype count. The tensor must be dense.
std::uint64_t hash64(const at::Tensor& tensor);
Hash128 hash128(const at::Tensor& tensor);

// 16 digits, or 32 with the high half first, as XXH3's own tools write them.
std::string hex_of(std::uint64_t hash);
std::string hex_of(const Hash128& hash);

// Hashes a sequence of values. Texts carry their length, so that "ab", "c"
// and "a", "bc" differ.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void add_bytes(const void* data, std::size_t num_bytes);
  void add_text(std::string_view text);
  void add_number(std::int64_t number);
  // Elements as in hash64.
  void add_tensor(const at::Tensor& tensor);

  // Of what was added so far. More may be added afterwards.
  std::uint64_t digest() const;
  Hash128 digest128() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nfold
