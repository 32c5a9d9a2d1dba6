#include "comm/collectives_bodies.h"

#include <algorithm>
#include <cstring>

#include "comm/combine.h"

namespace nfold {
namespace {

using Message = GroupExchange::Message;
using Phase = GroupExchange::Phase;

// Large enough that the cost of a message does not count, small enough that
// what was received is still in a cache when it is summed.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;
// Chunks under way for each peer: one is summed while others arrive.
constexpr std::size_t kStagingDepth = 3;

// A range of one rank's shard that travels as one message.
struct Chunk {
  std::size_t flat = 0;
  std::int64_t offset_bytes = 0;
  std::int64_t num_bytes = 0;
};

std::vector<Chunk> chunks_of(const std::vector<FlatView>& flats, int rank) {
  std::vector<Chunk> chunks;
  for (std::size_t i = 0; i < flats.size(); ++i) {
    const std::int64_t end = flats[i].shard_bytes(rank);
    for (std::int64_t at = 0; at < end; at += kChunkBytes) {
      chunks.push_back({i, at, std::min(kChunkBytes, end - at)});
    }
  }
  return chunks;
}

// Receives and combines this rank's shards, chunk by chunk. Staging is a ring:
// chunk c of every peer goes to slot c % kStagingDepth, and its receive is
// posted as soon as the chunk before it in that slot was summed.
class ShardReduction {
 public:
  ShardReduction(GroupExchange& exchange, Scratch& scratch,
                 const std::vector<FlatView>& flats, const CollectiveCall& call)
      : exchange_(exchange),
        scratch_(scratch),
        flats_(flats),
        call_(call),
        chunks_(chunks_of(flats, exchange.rank())),
        ranks_(exchange.ranks()),
        arrivals_(kStagingDepth) {
    for (const int peer : exchange.peers()) {
      if (!exchange.is_empty(peer)) senders_.push_back(peer);
    }
    std::int64_t output_bytes = 0;
    for (const Chunk& chunk : chunks_) {
      slot_bytes_ = std::max(slot_bytes_, chunk.num_bytes);
      output_bytes += chunk.num_bytes;
    }
    stores_ = kernels::stores_for(output_bytes);
    // Slots start at cache lines.
    slot_bytes_ = (slot_bytes_ + 63) / 64 * 64;
    staging_ = scratch.staging(static_cast<std::size_t>(slot_bytes_) *
                               kStagingDepth * senders_.size());
  }

  // Calls done(chunk, output) after each chunk.
  template <typename Done>
  void run(const std::vector<std::byte*>& outputs, Done done) {
    for (std::size_t c = 0; c < std::min(kStagingDepth, chunks_.size()); ++c) {
      post(c);
    }
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      for (Message& message : arrivals_[c % kStagingDepth]) {
        exchange_.wait(message);
      }
      const Chunk& chunk = chunks_[c];
      std::byte* output = outputs[chunk.flat] + chunk.offset_bytes;
      combine_chunk(c, output);
      if (c + kStagingDepth < chunks_.size()) post(c + kStagingDepth);
      done(chunk, output);
    }
  }

 private:
  std::byte* slot(std::size_t chunk, std::size_t sender) const {
    return staging_ + static_cast<std::int64_t>(
                          (chunk % kStagingDepth) * senders_.size() + sender) *
                          slot_bytes_;
  }

  void post(std::size_t c) {
    auto& messages = arrivals_[c % kStagingDepth];
    messages.clear();
    for (std::size_t s = 0; s < senders_.size(); ++s) {
      messages.push_back(
          exchange_.receive(senders_[s], slot(c, s), chunks_[c].num_bytes));
    }
  }

  void combine_chunk(std::size_t c, std::byte* output) {
    const Chunk& chunk = chunks_[c];
    const FlatView& flat = flats_[chunk.flat];
    std::vector<const std::byte*> by_rank;
    for (const int rank : ranks_) {
      const auto sender = std::find(senders_.begin(), senders_.end(), rank);
      const std::byte* contribution = nullptr;
      if (sender != senders_.end()) {
        contribution =
            slot(c, static_cast<std::size_t>(sender - senders_.begin()));
      } else if (rank == exchange_.rank() && !call_.is_empty) {
        contribution = flat.shard(rank) + chunk.offset_bytes;
      }
      by_rank.push_back(contribution);
    }
    combine(call_, flat.dtype, output, by_rank, chunk.num_bytes, scratch_,
            stores_);
  }

  GroupExchange& exchange_;
  Scratch& scratch_;
  const std::vector<FlatView>& flats_;
  const CollectiveCall& call_;
  const std::vector<Chunk> chunks_;             // of this rank's shards
  const std::vector<int> ranks_;                // that are combined
  std::vector<int> senders_;                    // peers that send payload
  std::vector<std::vector<Message>> arrivals_;  // of each slot
  std::int64_t slot_bytes_ = 0;
  kernels::Stores stores_ = kernels::Stores::kCached;
  std::byte* staging_ = nullptr;
};

void send_shards(GroupExchange& exchange, const std::vector<FlatView>& flats) {
  for (const int peer : exchange.peers()) {
    for (const Chunk& chunk : chunks_of(flats, peer)) {
      exchange.send(peer, flats[chunk.flat].shard(peer) + chunk.offset_bytes,
                    chunk.num_bytes);
    }
  }
}

void wait_all(GroupExchange& exchange, std::vector<Message>& messages) {
  for (Message& message : messages) exchange.wait(message);
}

}  // namespace

void run_all_gather(GroupExchange& exchange,
                    const std::vector<FlatView>& flats) {
  std::vector<Message> messages;
  for (const int peer : exchange.peers()) {
    for (const FlatView& flat : flats) {
      messages.push_back(
          exchange.receive(peer, flat.shard(peer), flat.shard_bytes(peer)));
    }
  }
  for (const int peer : exchange.peers()) {
    for (const FlatView& flat : flats) {
      exchange.send(peer, flat.shard(exchange.rank()),
                    flat.shard_bytes(exchange.rank()));
    }
  }
  exchange.begin();
  wait_all(exchange, messages);
  exchange.finish();
}

void run_reduce_scatter(GroupExchange& exchange, Scratch& scratch,
                        const std::vector<FlatView>& flats,
                        const std::vector<std::byte*>& outputs,
                        const CollectiveCall& call) {
  if (!call.is_empty) send_shards(exchange, flats);
  exchange.begin();
  ShardReduction reduction(exchange, scratch, flats, call);
  reduction.run(outputs, [](const Chunk&, const std::byte*) {});
  exchange.finish();
}

void run_all_reduce(GroupExchange& exchange, Scratch& scratch,
                    const FlatView& flat, const CollectiveCall& call) {
  const std::vector<FlatView> flats{flat};
  send_shards(exchange, flats);
  // The sums land where the contributions were sent from. That is safe: a peer
  // sends the sum of a chunk only after it has received our contribution.
  std::vector<Message> messages;
  for (const int peer : exchange.peers()) {
    for (const Chunk& chunk : chunks_of(flats, peer)) {
      messages.push_back(exchange.receive(peer,
                                          flat.shard(peer) + chunk.offset_bytes,
                                          chunk.num_bytes, Phase::kSecond));
    }
  }
  exchange.begin();
  ShardReduction reduction(exchange, scratch, flats, call);
  reduction.run({flat.shard(exchange.rank())},
                [&](const Chunk& chunk, const std::byte* sum) {
                  for (const int peer : exchange.peers()) {
                    exchange.send(peer, sum, chunk.num_bytes, Phase::kSecond);
                  }
                });
  wait_all(exchange, messages);
  exchange.finish();
}

void run_broadcast(GroupExchange& exchange, const FlatView& flat, int source) {
  Message message;
  if (exchange.rank() == source) {
    for (const int peer : exchange.peers()) {
      exchange.send(peer, flat.data, flat.num_bytes());
    }
  } else {
    message = exchange.receive(source, flat.data, flat.num_bytes());
  }
  exchange.begin();
  exchange.wait(message);
  exchange.finish();
}

void run_all_to_all(GroupExchange& exchange, const FlatView& output,
                    const FlatView& input) {
  std::vector<Message> messages;
  for (const int peer : exchange.peers()) {
    messages.push_back(
        exchange.receive(peer, output.shard(peer), output.shard_bytes(peer)));
  }
  for (const int peer : exchange.peers()) {
    exchange.send(peer, input.shard(peer), input.shard_bytes(peer));
  }
  if (input.numel > 0) {
    std::memcpy(output.shard(exchange.rank()), input.shard(exchange.rank()),
                static_cast<std::size_t>(input.shard_bytes(exchange.rank())));
  }
  exchange.begin();
  wait_all(exchange, messages);
  exchange.finish();
}

}  // namespace nfold
