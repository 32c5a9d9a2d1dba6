// File: shared_array.h
//
// An array that the ranks of a group have in common: each writes its own part,
// all read everything, nothing is copied. It makes an all-gather of what rests
// in it a matter of waiting until the parts are up to date.
//
//   auto array = SharedArray::make(group, num_bytes, "layer 3");  // or null
//   write(array->data() + rank * part);      // this rank's part
//   array->publish();                        // version 1
//   array->await_versions();                 // of all: reading is safe now
//   ...
//   array->begin_update();                   // nobody reads any more
//   write(...); array->publish();            // version 2
//
// [Note: Readers and versions]
// A part changes only between its owner's begin_update and publish, and
// begin_update returns only when every rank has called it, which a rank does
// when it has read all it wanted of the version at hand. So nobody reads what
// is being written. In between ranks do as they please: a read needs no
// partner. All ranks must call begin_update and publish equally often.
//
// Source: the one-sided reads and versions are those of seqlocks and RCU; that
// parameters change only inside of a step makes them this simple.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "comm/shared_segment.h"
#include "comm/shm_channel.h"
#include "nfold/group.h"

namespace nfold {

class SharedArray {
 public:
  // Collective over the group; zeros. Null, on all ranks, if they share no
  // memory. `label` is for errors. Raises c10::OutOfMemoryError on all ranks
  // when /dev/shm has no room.
  static std::shared_ptr<SharedArray> make(Group& group, std::size_t num_bytes,
                                           std::string label);

  // Collective over the group: raises c10::OutOfMemoryError on all ranks if
  // they share memory and /dev/shm has no room for that much, before any of it
  // is taken. `purpose`: "the parameters of 12 units".
  static void check_room(Group& group, std::int64_t num_bytes,
                         const std::string& purpose);

  SharedArray(std::shared_ptr<ShmChannel> channel, SharedSegment segment,
              std::string label);

  // At a page's boundary.
  std::byte* data() const;

  // How often this rank has published.
  std::uint32_t version() const { return version_; }
  // Whether all parts are still at the version at hand.
  bool is_current() const;

  // The functions that wait raise c10::DistBackendError with the label when a
  // rank is gone, or does not come within the group's time-out.
  void begin_update();
  void publish();
  void await_versions() const;

 private:
  struct Counters;
  Counters& counters(int rank) const;
  void await(int rank, ShmChannel::Word& word, std::uint32_t target,
             const char* missing) const;

  std::shared_ptr<ShmChannel> channel_;
  SharedSegment segment_;
  const std::string label_;
  std::uint32_t version_ = 0;
};

}  // namespace nfold
