#include "bench/collectives_bench.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "bench/plain_loops.h"
#include "comm/gloo_backend.h"
#include "nfold/collectives.h"
#include "nfold/host_memory.h"

namespace nfold::bench {
namespace {

constexpr std::int64_t kElementBytes = sizeof(float);

struct BufferPair {
  at::Tensor full;
  at::Tensor other;
};

BufferPair make_pair(std::int64_t size_bytes) {
  const std::int64_t numel = size_bytes / kElementBytes;
  // Sums of zeros stay what they are, however often they are taken.
  return {at::zeros({numel}, at::kFloat), at::zeros({numel}, at::kFloat)};
}

[[noreturn]] void raise_moves_nothing() {
  TORCH_CHECK_VALUE(false,
                    "bench collectives: a barrier moves no bytes; "
                    "expected a collective that does");
}

std::function<void()> call_of(Collective collective, Group* group,
                              const BufferPair& pair) {
  const std::int64_t shard_numel = pair.full.numel() / group->size();
  const at::Tensor full = pair.full;
  const at::Tensor other = pair.other;
  const at::Tensor shard =
      full.narrow(0, group->rank() * shard_numel, shard_numel);
  switch (collective) {
    case Collective::kAllGather:
      return [=] { all_gather(*group, full, shard).wait(); };
    case Collective::kReduceScatter:
      return [=] { reduce_scatter(*group, shard, full).wait(); };
    case Collective::kAllReduce:
      return [=] { all_reduce(*group, full).wait(); };
    case Collective::kAllToAll:
      return [=] { all_to_all(*group, other, full).wait(); };
    case Collective::kBroadcast:
      return [=] { broadcast(*group, full, 0).wait(); };
    case Collective::kBarrier:
      break;
  }
  raise_moves_nothing();
}

using Backend = c10::intrusive_ptr<c10d::Backend>;

// Torch's own collectives.
std::function<void()> torch_call_of(Collective collective,
                                    const Backend& backend, int size,
                                    const BufferPair& pair) {
  at::Tensor full = pair.full;
  at::Tensor other = pair.other;
  at::Tensor shard = other.narrow(0, 0, full.numel() / size);
  std::vector<at::Tensor> tensors{full};
  std::vector<std::int64_t> equal;
  switch (collective) {
    case Collective::kAllGather:
      return [=]() mutable { backend->_allgather_base(full, shard)->wait(); };
    case Collective::kReduceScatter:
      return
          [=]() mutable { backend->_reduce_scatter_base(shard, full)->wait(); };
    case Collective::kAllReduce:
      return [=]() mutable { backend->allreduce(tensors)->wait(); };
    case Collective::kAllToAll:
      return [=]() mutable {
        backend->alltoall_base(other, full, equal, equal)->wait();
      };
    case Collective::kBroadcast:
      return [=]() mutable { backend->broadcast(tensors)->wait(); };
    case Collective::kBarrier:
      break;
  }
  raise_moves_nothing();
}

// The backend that other libraries use on a CPU, among the ranks of one host.
Backend torch_gloo(const World& world) {
  constexpr std::chrono::minutes kTimeout(5);
  const char* const address = "127.0.0.1";
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = world.rank() == 0;
  options.waitWorkers = false;
  c10::intrusive_ptr<c10d::TCPStore> store;
  if (options.isServer) {
    store = c10::make_intrusive<c10d::TCPStore>(address, options);
  }
  const at::Tensor port =
      at::full({1}, store ? store->getPort() : 0, at::kLong);
  broadcast(world.group(), port, 0).wait();
  options.port = static_cast<std::uint16_t>(port.item<std::int64_t>());
  if (!store) store = c10::make_intrusive<c10d::TCPStore>(address, options);
  auto backend =
      make_gloo_backend(store, world.rank(), world.size(), kTimeout, address);
  barrier(world.group()).wait();  // the server's rank may be the first to go
  return backend;
}

// One way for bytes between ranks.
struct Way {
  std::string name;
  // What its ranks fall into step over.
  std::shared_ptr<Group> group;
  std::function<std::function<void()>(Collective, const BufferPair&)> call_of;
};

Way way_over(std::shared_ptr<Group> group) {
  const std::string name = group->transport();
  return {name, group, [group](Collective collective, const BufferPair& pair) {
            return call_of(collective, group.get(), pair);
          }};
}

// Every transport that the world's ranks have, the default first, and what
// torch has. This is the one place that knows of them.
std::vector<Way> ways_of(const World& world) {
  const std::shared_ptr<Group> whole(&world.group(), [](Group*) {});
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  std::vector<Way> ways{way_over(whole)};
  if (ways.front().name != name_of(Transport::kGloo)) {
    ways.push_back(
        way_over(world.new_group("bench_gloo", all, Transport::kGloo)));
  }
  if (world.local_size() == world.size()) {
    ways.push_back({"torch", whole,
                    [backend = torch_gloo(world), size = world.size()](
                        Collective collective, const BufferPair& pair) {
                      return torch_call_of(collective, backend, size, pair);
                    }});
  }
  return ways;
}

// One cell of the table: what is timed, on this rank.
struct Cell {
  CollectiveRow row;
  std::size_t copy = 0;  // index of the copy of the same size
  Group* group = nullptr;
  int num_calls = 1;
  std::function<void()> call = nullptr;
};

// Small ones take turns that are long enough for the clock and for the ranks
// to fall into step.
int num_calls_for(std::int64_t size_bytes) {
  constexpr std::int64_t kTurnBytes = std::int64_t{1} << 22;
  constexpr std::int64_t kMaxCalls = 16;
  return static_cast<int>(
      std::clamp<std::int64_t>(kTurnBytes / size_bytes, 1, kMaxCalls));
}

std::vector<Cell> cells_of(const std::vector<Way>& ways, const World& world,
                           const CollectivesBenchOptions& options) {
  std::vector<Cell> cells;
  for (const std::int64_t asked : options.sizes) {
    const std::int64_t size = whole_size(asked, world.size());
    const std::size_t copy_index = cells.size();
    Cell base;
    base.row.size_bytes = size;
    base.copy = copy_index;
    base.group = &world.group();
    base.num_calls = num_calls_for(size);
    for (const Way& way : ways) {
      const BufferPair pair = make_pair(size);
      if (cells.size() == copy_index) {
        base.call = [pair] { copy_bytes(pair.other, pair.full); };
        cells.push_back(base);
      }
      for (const Collective collective : options.collectives) {
        Cell cell = base;
        cell.group = way.group.get();
        cell.row.collective = collective;
        cell.row.transport = way.name;
        cell.row.moved_bytes = moved_bytes(collective, size, world.size());
        cell.call = way.call_of(collective, pair);
        cells.push_back(std::move(cell));
      }
    }
  }
  return cells;
}

double seconds_of(const Cell& cell) {
  using Clock = std::chrono::steady_clock;
  barrier(*cell.group).wait();
  const auto start = Clock::now();
  for (int i = 0; i < cell.num_calls; ++i) cell.call();
  return std::chrono::duration<double>(Clock::now() - start).count() /
         cell.num_calls;
}

// Of the slowest rank, [cell][round].
std::vector<std::vector<double>> time_cells(const World& world,
                                            const std::vector<Cell>& cells,
                                            int num_rounds) {
  const auto num_cells = static_cast<std::int64_t>(cells.size());
  at::Tensor seconds = at::zeros({num_cells, num_rounds}, at::kDouble);
  for (const Cell& cell : cells) seconds_of(cell);  // warm
  auto times = seconds.accessor<double, 2>();
  for (int round = 0; round < num_rounds; ++round) {
    for (std::size_t turn = 0; turn < cells.size(); ++turn) {
      const std::size_t i =
          item_at(static_cast<std::size_t>(round), turn, cells.size());
      times[static_cast<std::int64_t>(i)][round] = seconds_of(cells[i]);
    }
  }
  all_reduce(world.group(), seconds, ReduceOp::kMax).wait();
  std::vector<std::vector<double>> result;
  for (std::int64_t i = 0; i < num_cells; ++i) {
    const at::Tensor row = seconds[i].contiguous();
    const auto* begin = row.const_data_ptr<double>();
    result.emplace_back(begin, begin + num_rounds);
  }
  return result;
}

void check_options(const World& world, const CollectivesBenchOptions& options) {
  TORCH_CHECK_VALUE(world.size() >= 2, "bench collectives: nothing moves ",
                    "between the ranks of a world of one; expected at least 2, "
                    "as with --nproc 2");
  TORCH_CHECK_VALUE(!options.sizes.empty() && options.num_rounds >= 1,
                    "bench collectives: expected at least one size and one "
                    "round but found ",
                    options.sizes.size(), " and ", options.num_rounds);
  for (const std::int64_t size : options.sizes) {
    TORCH_CHECK_VALUE(whole_size(size, world.size()) > 0,
                      "bench collectives: a size of ", size, " bytes gives ",
                      world.size(),
                      " ranks no fp32 element each; expected at least ",
                      kElementBytes * world.size());
  }
}

}  // namespace

std::int64_t moved_bytes(Collective collective, std::int64_t size_bytes,
                         int num_ranks) {
  const std::int64_t to_others = size_bytes / num_ranks * (num_ranks - 1);
  switch (collective) {
    case Collective::kAllGather:
    case Collective::kReduceScatter:
    case Collective::kAllToAll:
      return to_others;
    case Collective::kAllReduce:
      return 2 * to_others;
    case Collective::kBroadcast:
      return size_bytes;
    case Collective::kBarrier:
      break;
  }
  return 0;
}

std::int64_t whole_size(std::int64_t size_bytes, int num_ranks) {
  const std::int64_t unit = kElementBytes * num_ranks;
  return size_bytes / unit * unit;
}

std::vector<CollectiveRow> bench_collectives(
    const World& world, const CollectivesBenchOptions& options) {
  check_options(world, options);
  enable_host_cache();  // as an Engine does: huge pages where permitted
  const std::vector<Way> ways = ways_of(world);
  const std::vector<Cell> cells = cells_of(ways, world, options);
  const auto seconds = time_cells(world, cells, options.num_rounds);
  std::vector<CollectiveRow> rows;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const Cell& cell = cells[i];
    if (cell.copy == i) continue;
    const auto& copy_seconds = seconds[cell.copy];
    const auto size = static_cast<double>(cell.row.size_bytes);
    const auto moved = static_cast<double>(cell.row.moved_bytes);
    const Spread ratio = ratio_of(copy_seconds, seconds[i]);
    const double scale = moved / size;
    CollectiveRow row = cell.row;
    row.seconds = spread_of(seconds[i]);
    row.gb_per_second = rate_of(moved / 1e9, seconds[i]);
    row.copy_gb_per_second = rate_of(size / 1e9, copy_seconds);
    row.by_copy = {ratio.median * scale, ratio.min * scale, ratio.max * scale};
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace nfold::bench
