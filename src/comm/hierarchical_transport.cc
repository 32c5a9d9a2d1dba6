#include "comm/hierarchical_transport.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace nfold {
namespace {

class HierarchicalTransport : public GroupTransport {
 public:
  HierarchicalTransport(const HostBlocks& blocks, int rank,
                        HierarchyLevels levels)
      : blocks_(blocks),
        local_rank_(rank % blocks.ranks_per_host),
        levels_(std::move(levels)) {}

  const char* name() const override { return "shm+gloo"; }

  std::int64_t all_gather(const CollectiveCall& call,
                          const std::vector<FlatView>& flats) override {
    meet(call);
    std::int64_t sent_bytes = across().all_gather(call, flats);
    sent_bytes += local().all_gather(call, by_host(flats));
    return sent_bytes;
  }

  std::int64_t reduce_scatter(const CollectiveCall& call,
                              const std::vector<FlatView>& flats,
                              const std::vector<std::byte*>& outputs) override {
    if (!combines_by_host(blocks_, call.op, call.dtype)) {
      meet(call);
      return flat().reduce_scatter(call, flats, outputs);
    }
    // Sums of this host, where the input must stay as it is. Of each tensor
    // only the parts of this rank's column are ever touched.
    std::vector<at::Tensor> memory;
    std::vector<FlatView> sums = flats;
    for (FlatView& each : sums) {
      memory.push_back(at::empty({each.numel}, each.dtype));
      each.data = static_cast<std::byte*>(memory.back().mutable_data_ptr());
    }
    std::int64_t sent_bytes = reduce_inside(call, flats, sums);
    sent_bytes += across().reduce_scatter(with_sums(call), sums, outputs);
    return sent_bytes;
  }

  std::int64_t all_reduce(const CollectiveCall& call,
                          const FlatView& whole) override {
    if (!combines_by_host(blocks_, call.op, call.dtype)) {
      meet(call);
      return flat().all_reduce(call, whole);
    }
    std::int64_t sent_bytes = reduce_inside(call, {whole}, {whole});
    sent_bytes += across().all_reduce(call, whole);
    sent_bytes += local().all_gather(call, by_host({whole}));
    return sent_bytes;
  }

  std::int64_t broadcast(const CollectiveCall& call,
                         const FlatView& whole) override {
    meet(call);
    CollectiveCall local_call = call;
    local_call.source = call.source % blocks_.ranks_per_host;
    std::int64_t sent_bytes = 0;
    if (local_call.source == local_rank_) {
      sent_bytes += across().broadcast(call, whole);
    }
    sent_bytes += local().broadcast(local_call, whole);
    return sent_bytes;
  }

  std::int64_t all_to_all(const CollectiveCall& call, const FlatView& output,
                          const FlatView& input) override {
    meet(call);
    return flat().all_to_all(call, output, input);
  }

  std::int64_t barrier(const CollectiveCall& call) override {
    meet(call);
    return across().barrier(call);
  }

  void abort(const std::string& text) noexcept override {
    for (auto* level : {&local(), &across(), &flat()}) level->abort(text);
  }
  void close() noexcept override {
    for (auto* level : {&local(), &across(), &flat()}) level->close();
  }

 private:
  GroupTransport& local() const { return *levels_.local; }
  GroupTransport& across() const { return *levels_.across; }
  GroupTransport& flat() const { return *levels_.flat; }

  // Before anything waits for a rank of another host.
  void meet(const CollectiveCall& call) { local().barrier(call); }

  // For each host and flat tensor, the part that its ranks own.
  std::vector<FlatView> by_host(const std::vector<FlatView>& flats) const {
    std::vector<FlatView> parts;
    for (int host = 0; host < blocks_.num_hosts; ++host) {
      for (const FlatView& whole : flats) {
        const int first = host * blocks_.ranks_per_host;
        const std::int64_t begin =
            std::min(first * whole.shard_numel, whole.numel);
        const std::int64_t end = std::min(
            begin + blocks_.ranks_per_host * whole.shard_numel, whole.numel);
        parts.push_back(
            {whole.shard(first), whole.dtype, end - begin, whole.shard_numel});
      }
    }
    return parts;
  }

  // Of `sums`, laid out as `flats`, the shards of this rank's column <- what
  // this host contributes to them.
  std::int64_t reduce_inside(const CollectiveCall& call,
                             const std::vector<FlatView>& flats,
                             const std::vector<FlatView>& sums) {
    std::vector<std::byte*> outputs;
    for (const FlatView& part : by_host(sums)) {
      outputs.push_back(part.shard(local_rank_));
    }
    return local().reduce_scatter(call, by_host(flats), outputs);
  }

  // Others of this host may have contributed where this rank has not.
  static CollectiveCall with_sums(CollectiveCall call) {
    call.is_empty = false;
    return call;
  }

  const HostBlocks blocks_;
  const int local_rank_;
  const HierarchyLevels levels_;
};

}  // namespace

std::unique_ptr<GroupTransport> make_hierarchical_transport(
    const HostBlocks& blocks, int rank, HierarchyLevels levels) {
  return std::make_unique<HierarchicalTransport>(blocks, rank,
                                                 std::move(levels));
}

}  // namespace nfold
