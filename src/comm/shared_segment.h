// File: shared_segment.h
//
// Memory that several processes of one host map: a file in /dev/shm that has a
// name only until all have opened it. Whoever maps it keeps it alive, so
// nothing is left behind, not even by a crash; a crash before the name is gone
// leaves a file that the next job of the same user removes.
//
//   auto mine = SharedSegment::create(1 << 20);      // zeros
//   send_to_peers(mine.name());
//   auto theirs = SharedSegment::open(name, 1 << 20);
//   mine.unlink();                                   // when all have it
//
// Needs Linux. Functions raise c10::Error with what was asked for, what there
// is, and what to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace nfold {

class SharedSegment {
 public:
  // num_bytes > 0, all of which are reserved at once: later writes cannot fail.
  static SharedSegment create(std::size_t num_bytes);
  static SharedSegment open(const std::string& name, std::size_t num_bytes);

  SharedSegment() = default;  // no memory
  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&& other) noexcept;
  ~SharedSegment();  // unlinks what this made

  std::byte* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }
  // Of the file, without a folder: "nfold.1000.4711.9f3c...".
  const std::string& name() const { return name_; }
  // Idempotent.
  void unlink() noexcept;

 private:
  void map(int file, std::size_t num_bytes);

  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  std::string name_;
  bool is_linked_ = false;
};

struct SharedSpace {
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;
};
// Of /dev/shm; zeros where there is none.
SharedSpace shared_space();

// Raises c10::OutOfMemoryError if that much more does not fit now.
// `purpose`: "the shards of 2 ranks".
void check_shared_space(std::int64_t num_bytes, const std::string& purpose);

// Files of this user whose makers are gone: those of jobs that were killed
// while their ranks were meeting. Returns how many it removed. Does not raise.
int remove_stale_segments() noexcept;

}  // namespace nfold
