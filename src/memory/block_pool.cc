#include "memory/block_pool.h"

#include <algorithm>

namespace nfold {
namespace {

// See [Note: The resident budget].
constexpr std::int64_t kReplacedShare = 2;
constexpr std::int64_t kSlackShare = 8;

constexpr std::int64_t rounded_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

void BlockPool::add_segment(std::uint64_t begin, std::int64_t num_bytes) {
  const auto [block, is_new] =
      blocks_.insert({begin, {num_bytes, Kind::kReleased, begin, 0}});
  if (is_new) add_free(block);
}

std::optional<BlockPool::Taken> BlockPool::take(std::int64_t num_bytes) {
  num_bytes = rounded_up(std::max<std::int64_t>(num_bytes, 1), kGranuleBytes);
  Taken taken;
  auto found = resident_.lower_bound({num_bytes, 0});
  taken.is_resident = found != resident_.end();
  if (!taken.is_resident) {
    const bool fits = released_.lower_bound({num_bytes, 0}) != released_.end();
    if (!fits) return std::nullopt;
    taken.release = release(excess_with(num_bytes));
    // After the release, which may have made a better one.
    found = released_.lower_bound({num_bytes, 0});
  }
  const auto block = blocks_.find(found->second);
  split(block, num_bytes);
  remove_free(block);
  block->second.kind = Kind::kInUse;
  bytes_in_use_ += num_bytes;
  peak_bytes_in_use_ = std::max(peak_bytes_in_use_, bytes_in_use_);
  taken.begin = block->first;
  return taken;
}

std::int64_t BlockPool::excess_with(std::int64_t num_bytes) {
  const auto in_use = bytes_in_use_ + num_bytes;
  const auto peak = std::max(peak_bytes_in_use_, in_use);
  if (peak > peak_bytes_in_use_) replaced_bytes_ = 0;
  const auto excess = in_use + kept_bytes_ - peak - slack_bytes_;
  if (excess <= 0) return 0;
  replaced_bytes_ += excess;
  if (replaced_bytes_ <= peak / kReplacedShare ||
      slack_bytes_ + excess > peak / kSlackShare) {
    return excess;
  }
  slack_bytes_ += excess;
  replaced_bytes_ = 0;
  return 0;
}

bool BlockPool::give(std::uint64_t begin) {
  const auto block = blocks_.find(begin);
  if (block == blocks_.end() || block->second.kind != Kind::kInUse) {
    return false;
  }
  bytes_in_use_ -= block->second.num_bytes;
  block->second.kind = Kind::kResident;
  block->second.freed_at = ++clock_;
  add_free(merged(block));
  return true;
}

std::vector<AddressRange> BlockPool::release_all() {
  return release(kept_bytes_);
}

std::vector<AddressRange> BlockPool::release(std::int64_t num_bytes) {
  std::vector<AddressRange> ranges;
  const auto page = static_cast<std::uint64_t>(page_bytes_);
  while (num_bytes > 0 && !by_age_.empty()) {
    const auto block = blocks_.find(by_age_.begin()->second);
    // Not more of a large one than is asked for.
    split(block, rounded_up(num_bytes, page_bytes_));
    remove_free(block);
    num_bytes -= block->second.num_bytes;
    const auto begin = (block->first + page - 1) / page * page;
    const auto end =
        (block->first + static_cast<std::uint64_t>(block->second.num_bytes)) /
        page * page;
    if (begin < end) {
      ranges.push_back({begin, static_cast<std::int64_t>(end - begin)});
    }
    block->second.kind = Kind::kReleased;
    add_free(merged(block));
  }
  return ranges;
}

void BlockPool::split(Blocks::iterator block, std::int64_t num_bytes) {
  if (block->second.num_bytes <= num_bytes) return;
  remove_free(block);
  Block rest = block->second;
  rest.num_bytes -= num_bytes;
  block->second.num_bytes = num_bytes;
  add_free(block);
  add_free(
      blocks_
          .insert({block->first + static_cast<std::uint64_t>(num_bytes), rest})
          .first);
}

BlockPool::Blocks::iterator BlockPool::merged(Blocks::iterator block) {
  const auto is_friend = [&](Blocks::iterator other) {
    return other->second.kind == block->second.kind &&
           other->second.segment == block->second.segment;
  };
  const auto absorb_next = [&](Blocks::iterator first) {
    const auto next = std::next(first);
    first->second.num_bytes += next->second.num_bytes;
    first->second.freed_at =
        std::max(first->second.freed_at, next->second.freed_at);
    blocks_.erase(next);
  };
  const auto next = std::next(block);
  if (next != blocks_.end() && is_friend(next)) {
    remove_free(next);
    absorb_next(block);
  }
  if (block == blocks_.begin()) return block;
  const auto previous = std::prev(block);
  if (!is_friend(previous)) return block;
  remove_free(previous);
  absorb_next(previous);
  return previous;
}

void BlockPool::add_free(Blocks::iterator block) {
  free_of(block->second.kind).insert({block->second.num_bytes, block->first});
  if (block->second.kind != Kind::kResident) return;
  by_age_.insert({block->second.freed_at, block->first});
  kept_bytes_ += block->second.num_bytes;
}

void BlockPool::remove_free(Blocks::iterator block) {
  free_of(block->second.kind).erase({block->second.num_bytes, block->first});
  if (block->second.kind != Kind::kResident) return;
  by_age_.erase({block->second.freed_at, block->first});
  kept_bytes_ -= block->second.num_bytes;
}

}  // namespace nfold
