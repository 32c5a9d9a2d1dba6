// File: collectives_bench.h
//
// Collectives by the bytes that a rank sends, over every transport that this
// world has and over torch's own gloo backend, if all ranks are on one host,
// beside a copy of as many bytes by all ranks at the same time: what the
// machine's memory could do for ranks that share it.
//
//   const auto rows = bench_collectives(world, {.sizes = {65536, 1 << 20}});
//   rows[0].gb_per_second.median
//
// A time is that of the slowest rank. All ranks must call it, with equal
// options, and get the same rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/rounds.h"
#include "nfold/group.h"
#include "nfold/world.h"

namespace nfold::bench {

struct CollectivesBenchOptions {
  // Bytes of the full tensor, rounded down to fp32 elements that divide by the
  // number of ranks.
  std::vector<std::int64_t> sizes = {1 << 16, 1 << 18, 1 << 20,
                                     1 << 22, 1 << 24, 1 << 26};
  std::vector<Collective> collectives = {
      Collective::kAllGather, Collective::kReduceScatter,
      Collective::kAllReduce, Collective::kAllToAll, Collective::kBroadcast};
  int num_rounds = 7;
};

struct CollectiveRow {
  Collective collective = Collective::kAllGather;
  std::string transport = {};
  std::int64_t size_bytes = 0;   // of the full tensor
  std::int64_t moved_bytes = 0;  // see moved_bytes()
  Spread seconds = {};
  Spread gb_per_second = {};       // of moved_bytes
  Spread copy_gb_per_second = {};  // each byte counted once
  Spread by_copy = {};             // round by round
};

// What one rank sends in a collective over a tensor of so many bytes, as
// nfold/collectives.h says; of a broadcast, what each of the others receives.
std::int64_t moved_bytes(Collective collective, std::int64_t size_bytes,
                         int num_ranks);

// The bytes that are really used for a size.
std::int64_t whole_size(std::int64_t size_bytes, int num_ranks);

// Raises c10::ValueError for a world of one rank, no sizes, sizes too small to
// give every rank an element, no rounds, and a barrier among the collectives.
std::vector<CollectiveRow> bench_collectives(
    const World& world, const CollectivesBenchOptions& options);

}  // namespace nfold::bench
