#include "comm/shm_transport.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "comm/combine.h"
#include "comm/scratch.h"
#include "kernels/streaming.h"

namespace nfold {
namespace {

// Up to here every rank sums everything: one phase instead of two.
constexpr std::int64_t kWholeBytes = std::int64_t{64} << 10;
constexpr std::int64_t kLineBytes = 64;

using kernels::copy_bytes;
using kernels::Stores;
using kernels::stores_for;

std::int64_t bytes_of(const std::vector<FlatView>& flats) {
  std::int64_t num_bytes = 0;
  for (const FlatView& flat : flats) num_bytes += flat.num_bytes();
  return num_bytes;
}

// The shards of one rank in several flat tensors, as one range of bytes.
class ShardBytes {
 public:
  ShardBytes(const std::vector<FlatView>& flats, int rank)
      : flats_(flats), rank_(rank) {}

  std::int64_t size() const {
    return std::accumulate(flats_.begin(), flats_.end(), std::int64_t{0},
                           [this](std::int64_t sum, const FlatView& flat) {
                             return sum + flat.shard_bytes(rank_);
                           });
  }

  // Calls use(flat index, offset in the shard, offset from `begin`, bytes) for
  // each contiguous piece of [begin, end).
  template <typename Use>
  void for_pieces(std::int64_t begin, std::int64_t end, Use use) const {
    std::int64_t start = 0;  // of the shard of flat i
    for (std::size_t i = 0; i < flats_.size() && start < end; ++i) {
      const std::int64_t shard_end = start + flats_[i].shard_bytes(rank_);
      const std::int64_t from = std::max(begin, start);
      const std::int64_t to = std::min(end, shard_end);
      if (from < to) use(i, from - start, from - begin, to - from);
      start = shard_end;
    }
  }

  void copy_to(std::byte* to, std::int64_t begin, std::int64_t end) const {
    for_pieces(begin, end,
               [&](std::size_t i, std::int64_t offset, std::int64_t at,
                   std::int64_t num_bytes) {
                 std::memcpy(to + at, flats_[i].shard(rank_) + offset,
                             static_cast<std::size_t>(num_bytes));
               });
  }

  void copy_from(const std::byte* from, std::int64_t begin, std::int64_t end,
                 Stores stores) const {
    for_pieces(begin, end,
               [&](std::size_t i, std::int64_t offset, std::int64_t at,
                   std::int64_t num_bytes) {
                 copy_bytes(flats_[i].shard(rank_) + offset, from + at,
                            num_bytes, stores);
               });
  }

 private:
  const std::vector<FlatView>& flats_;
  const int rank_;
};

class ShmTransport : public GroupTransport {
 public:
  explicit ShmTransport(std::shared_ptr<ShmChannel> channel)
      : channel_(std::move(channel)) {}

  const char* name() const override { return "shm"; }
  std::shared_ptr<ShmChannel> shm_channel() const override { return channel_; }
  void abort(const std::string& text) noexcept override {
    channel_->abort(text);
  }
  void close() noexcept override { channel_->close(); }

  std::int64_t all_gather(const CollectiveCall& call,
                          const std::vector<FlatView>& flats) override;
  std::int64_t reduce_scatter(const CollectiveCall& call,
                              const std::vector<FlatView>& flats,
                              const std::vector<std::byte*>& outputs) override;
  std::int64_t all_reduce(const CollectiveCall& call,
                          const FlatView& flat) override;
  std::int64_t broadcast(const CollectiveCall& call,
                         const FlatView& flat) override;
  std::int64_t all_to_all(const CollectiveCall& call, const FlatView& output,
                          const FlatView& input) override;
  std::int64_t barrier(const CollectiveCall& call) override;

 private:
  int rank() const { return channel_->rank(); }
  int size() const { return channel_->size(); }

  // Of a half-slot, for each of the peers.
  std::int64_t part_bytes() const {
    return ShmChannel::kStagingBytes / (size() - 1) / kLineBytes * kLineBytes;
  }
  // Where in the half-slot of one rank is what it gives to another.
  std::byte* part(int from, int to) const {
    return channel_->staging(from) +
           ((to - from - 1 + size()) % size()) * part_bytes();
  }

  // Calls phase(begin, end) for consecutive ranges of at most `step` bytes, at
  // least once, with a phase begun for each. All ranks must give the same
  // num_bytes: that of the first rank's shards, which are the longest.
  template <typename Phase>
  void in_phases(const CollectiveCall& call, std::int64_t num_bytes,
                 std::int64_t step, Phase phase) {
    channel_->begin(call);
    std::int64_t begin = 0;
    do {
      if (begin > 0) channel_->prepare();
      phase(begin, begin + step);
      begin += step;
    } while (begin < num_bytes);
  }

  // Gives each peer the range of its shards, then combines that of this
  // rank's shards: output(flat index, offset in the shard) says where to.
  template <typename Output>
  void reduce_range(const CollectiveCall& call,
                    const std::vector<FlatView>& flats, std::int64_t begin,
                    std::int64_t end, Output output);
  void all_reduce_whole(const CollectiveCall& call, const FlatView& flat);

  const std::shared_ptr<ShmChannel> channel_;
  Scratch scratch_;
};

std::int64_t ShmTransport::all_gather(const CollectiveCall& call,
                                      const std::vector<FlatView>& flats) {
  const ShardBytes own(flats, rank());
  constexpr auto kStep = ShmChannel::kStagingBytes;
  const std::int64_t longest = ShardBytes(flats, 0).size();
  const Stores stores = stores_for(bytes_of(flats));
  in_phases(call, longest, kStep, [&](std::int64_t begin, std::int64_t end) {
    own.copy_to(channel_->staging(rank()), begin, end);
    channel_->post();
    for (int i = 1; i < size(); ++i) {
      const int peer = channel_->peer(i);
      channel_->await(peer);
      ShardBytes(flats, peer)
          .copy_from(channel_->staging(peer), begin, end, stores);
    }
    channel_->take();
  });
  return own.size() * (size() - 1);
}

template <typename Output>
void ShmTransport::reduce_range(const CollectiveCall& call,
                                const std::vector<FlatView>& flats,
                                std::int64_t begin, std::int64_t end,
                                Output output) {
  for (int i = 1; i < size() && !call.is_empty; ++i) {
    const int peer = channel_->peer(i);
    ShardBytes(flats, peer).copy_to(part(rank(), peer), begin, end);
  }
  channel_->post();
  channel_->await_all();
  const ShardBytes own(flats, rank());
  const Stores stores = stores_for(own.size());
  own.for_pieces(
      begin, end,
      [&](std::size_t i, std::int64_t offset, std::int64_t at,
          std::int64_t num_bytes) {
        std::vector<const std::byte*> by_rank;
        for (int peer = 0; peer < size(); ++peer) {
          if (peer == rank()) {
            by_rank.push_back(call.is_empty ? nullptr
                                            : flats[i].shard(peer) + offset);
          } else {
            by_rank.push_back(
                channel_->is_empty(peer) ? nullptr : part(peer, rank()) + at);
          }
        }
        combine(call, flats[i].dtype, output(i, offset, at), by_rank, num_bytes,
                scratch_, stores);
      });
}

std::int64_t ShmTransport::reduce_scatter(
    const CollectiveCall& call, const std::vector<FlatView>& flats,
    const std::vector<std::byte*>& outputs) {
  const std::int64_t longest = ShardBytes(flats, 0).size();
  in_phases(call, longest, part_bytes(),
            [&](std::int64_t begin, std::int64_t end) {
              reduce_range(call, flats, begin, end,
                           [&](std::size_t i, std::int64_t offset,
                               std::int64_t) { return outputs[i] + offset; });
              channel_->take();
            });
  if (call.is_empty) return 0;
  return bytes_of(flats) - ShardBytes(flats, rank()).size();
}

void ShmTransport::all_reduce_whole(const CollectiveCall& call,
                                    const FlatView& flat) {
  channel_->begin(call);
  const auto num_bytes = static_cast<std::size_t>(flat.num_bytes());
  if (num_bytes > 0) {
    std::memcpy(channel_->staging(rank()), flat.data, num_bytes);
  }
  channel_->post();
  channel_->await_all();
  if (num_bytes > 0) {
    std::vector<const std::byte*> by_rank;
    for (int peer = 0; peer < size(); ++peer) {
      by_rank.push_back(peer == rank() ? flat.data : channel_->staging(peer));
    }
    combine(call, flat.dtype, flat.data, by_rank, flat.num_bytes(), scratch_);
  }
  channel_->take();
}

std::int64_t ShmTransport::all_reduce(const CollectiveCall& call,
                                      const FlatView& flat) {
  const std::int64_t own_bytes = flat.shard_bytes(rank());
  const std::int64_t sent_bytes =
      flat.num_bytes() - own_bytes + own_bytes * (size() - 1);
  if (flat.num_bytes() <= kWholeBytes) {
    all_reduce_whole(call, flat);
    return sent_bytes;
  }
  const std::vector<FlatView> flats{flat};
  const Stores stores = stores_for(flat.num_bytes());
  // The first rank's shard is the longest; all need the same phases.
  in_phases(call, flat.shard_bytes(0), part_bytes(),
            [&](std::int64_t begin, std::int64_t end) {
              std::byte* sums = nullptr;
              reduce_range(call, flats, begin, end,
                           [&](std::size_t, std::int64_t offset, std::int64_t) {
                             sums = flat.shard(rank()) + offset;
                             return sums;
                           });
              channel_->take();
              channel_->prepare();
              ShardBytes(flats, rank())
                  .copy_to(channel_->staging(rank()), begin, end);
              channel_->post();
              for (int i = 1; i < size(); ++i) {
                const int peer = channel_->peer(i);
                channel_->await(peer);
                ShardBytes(flats, peer)
                    .copy_from(channel_->staging(peer), begin, end, stores);
              }
              channel_->take();
            });
  return sent_bytes;
}

std::int64_t ShmTransport::broadcast(const CollectiveCall& call,
                                     const FlatView& flat) {
  const bool is_source = rank() == call.source;
  const std::vector<FlatView> flats{flat};
  const ShardBytes whole(flats, 0);
  constexpr auto kStep = ShmChannel::kStagingBytes;
  const Stores stores = stores_for(flat.num_bytes());
  in_phases(
      call, flat.num_bytes(), kStep, [&](std::int64_t begin, std::int64_t end) {
        if (is_source) whole.copy_to(channel_->staging(rank()), begin, end);
        channel_->post();
        // All, as each may have entered another collective.
        if (begin == 0) channel_->await_all();
        if (!is_source) {
          channel_->await(call.source);
          whole.copy_from(channel_->staging(call.source), begin, end, stores);
        }
        channel_->take();
      });
  return is_source ? flat.num_bytes() * (size() - 1) : 0;
}

std::int64_t ShmTransport::all_to_all(const CollectiveCall& call,
                                      const FlatView& output,
                                      const FlatView& input) {
  const std::vector<FlatView> outputs{output};
  const std::vector<FlatView> inputs{input};
  const std::int64_t part_size = input.shard_bytes(rank());
  const Stores stores = stores_for(output.num_bytes());
  copy_bytes(output.shard(rank()), input.shard(rank()), part_size, stores);
  in_phases(
      call, part_size, part_bytes(), [&](std::int64_t begin, std::int64_t end) {
        for (int i = 1; i < size(); ++i) {
          const int peer = channel_->peer(i);
          ShardBytes(inputs, peer).copy_to(part(rank(), peer), begin, end);
        }
        channel_->post();
        for (int i = 1; i < size(); ++i) {
          const int peer = channel_->peer(i);
          channel_->await(peer);
          ShardBytes(outputs, peer)
              .copy_from(part(peer, rank()), begin, end, stores);
        }
        channel_->take();
      });
  return part_size * (size() - 1);
}

std::int64_t ShmTransport::barrier(const CollectiveCall& call) {
  channel_->begin(call);
  channel_->post();
  channel_->await_all();
  channel_->take();
  return 0;
}

}  // namespace

std::unique_ptr<GroupTransport> make_shm_transport(
    std::shared_ptr<ShmChannel> channel) {
  return std::make_unique<ShmTransport>(std::move(channel));
}

}  // namespace nfold
