// File: collectives_call.h
//
// What one rank does when it enters a collective, as plain data that the ranks
// exchange before any payload, so that ranks that do different things find out
// at once instead of waiting for each other.
//
//   CollectiveCall call{.kind = Collective::kAllReduce, .numel = 8, ...};
//   if (differs(call, of_peer)) fail(describe(call), describe(of_peer));
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "nfold/collectives.h"

namespace nfold {

// Sent as its bytes; all hosts of a job have the same byte order.
struct CollectiveCall {
  // Of ranks that do not know each other's sizes.
  static constexpr std::int64_t kUnknownNumel = -1;

  std::uint64_t sequence = 0;  // how many collectives of the group came before
  std::uint64_t tag = 0;       // GroupImpl::set_tag
  std::uint64_t layout = 0;    // hash of the element count of each tensor
  std::int64_t numel = 0;      // of all full tensors together
  std::int32_t num_tensors = 1;
  std::int32_t source = -1;  // of a broadcast, as rank of the group
  Collective kind = Collective::kBarrier;
  ReduceOp op = ReduceOp::kSum;
  c10::ScalarType dtype = c10::ScalarType::Byte;
  // This rank contributes zeros and sends no payload. May differ.
  bool is_empty = false;
  std::uint32_t reserved = 0;
};
static_assert(std::is_trivially_copyable_v<CollectiveCall>);
static_assert(std::has_unique_object_representations_v<CollectiveCall>);

// Whether two ranks cannot take part in one collective with these calls.
bool differs(const CollectiveCall& a, const CollectiveCall& b);

// "reduce_scatter #17 of 4096 float32 in 3 tensors".
std::string describe(const CollectiveCall& call);

// For the backend's message matching: an even number, 2 or more; the number
// after it is free for a second phase. Calls that differ in what they send get
// different numbers, so that a payload never arrives in a buffer of another
// size.
int message_tag_of(const CollectiveCall& call);

}  // namespace nfold
