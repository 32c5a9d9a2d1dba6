// File: block_pool.h
//
// Which addresses a caching allocator hands out and which it gives back to the
// system. Pure: numbers in, numbers out; host_memory.cc does what is decided
// here.
//
//   BlockPool pool(/*page_bytes=*/2 << 20);
//   pool.add_segment(address, num_bytes);
//   auto taken = pool.take(num_bytes);     // best fit; empty: add a segment
//   for (auto range : taken->release) ...  // its memory goes back first
//   pool.give(taken->begin);
//
// A free block is either resident (its memory was used before and is kept) or
// released (addresses only). Free neighbours of one kind are one block.
//
// [Note: The resident budget]
// Resident bytes, in use or free, never exceed the most bytes that were ever
// in use at once: before an allocation takes fresh memory that would, as much
// free memory is released, least recently freed first. So the cache costs no
// memory, only speed where blocks do not fit.
//
// A program that repeats its allocations may so release and take the same bytes
// in every round, if it needs its most in blocks of other sizes than it has
// freed. When half of that most has been replaced since it last grew, the
// budget grows by what would be released next, up to an eighth in all; soon
// everything is found resident.
//
// Released ranges are whole pages, so up to two pages of each stay with the
// system's count.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace nfold {

struct AddressRange {
  std::uint64_t begin = 0;
  std::int64_t num_bytes = 0;

  bool operator==(const AddressRange&) const = default;
};

class BlockPool {
 public:
  // Sizes are rounded up to this: blocks start at cache lines and small pages.
  static constexpr std::int64_t kGranuleBytes = 4096;

  // page_bytes: what the system takes back at a time, a power of two.
  explicit BlockPool(std::int64_t page_bytes) : page_bytes_(page_bytes) {}

  // Addresses, released so far, that overlap nothing added before.
  void add_segment(std::uint64_t begin, std::int64_t num_bytes);

  struct Taken {
    std::uint64_t begin = 0;
    bool is_resident = false;           // it was used before
    std::vector<AddressRange> release;  // to go back to the system first
  };
  // Nothing if no block is large enough; then nothing was changed.
  std::optional<Taken> take(std::int64_t num_bytes);
  // False if the address is not of a block that was taken.
  bool give(std::uint64_t begin);
  // Releases everything that is free.
  std::vector<AddressRange> release_all();

  std::int64_t bytes_in_use() const { return bytes_in_use_; }
  std::int64_t peak_bytes_in_use() const { return peak_bytes_in_use_; }
  std::int64_t resident_bytes() const { return bytes_in_use_ + kept_bytes_; }

 private:
  enum class Kind { kInUse, kResident, kReleased };
  struct Block {
    std::int64_t num_bytes = 0;
    Kind kind = Kind::kReleased;
    std::uint64_t segment = 0;   // where its segment begins
    std::uint64_t freed_at = 0;  // order of give(), of resident ones
  };
  using Blocks = std::map<std::uint64_t, Block>;  // by address, all of them
  using BySize = std::set<std::pair<std::int64_t, std::uint64_t>>;

  BySize& free_of(Kind kind) {
    return kind == Kind::kResident ? resident_ : released_;
  }
  void add_free(Blocks::iterator block);
  void remove_free(Blocks::iterator block);
  // Cuts a free block to its first bytes; the rest is one of its own.
  void split(Blocks::iterator block, std::int64_t num_bytes);
  // Joins a block that is in no list yet with free neighbours of its kind.
  Blocks::iterator merged(Blocks::iterator block);
  std::vector<AddressRange> release(std::int64_t num_bytes);
  // What must be released before so much fresh memory is taken. Counts it.
  std::int64_t excess_with(std::int64_t num_bytes);

  std::int64_t page_bytes_;
  Blocks blocks_;
  BySize resident_;
  BySize released_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> by_age_;  // resident ones
  std::int64_t bytes_in_use_ = 0;
  std::int64_t peak_bytes_in_use_ = 0;
  std::int64_t kept_bytes_ = 0;      // of resident free blocks
  std::int64_t slack_bytes_ = 0;     // of the budget, beyond the peak
  std::int64_t replaced_bytes_ = 0;  // since peak or slack last grew
  std::uint64_t clock_ = 0;
};

}  // namespace nfold
