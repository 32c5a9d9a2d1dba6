#include "comm/all_to_all_parts.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/group_impl.h"
#include "comm/peer_errors.h"

namespace nfold {
namespace {

std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

void copy_part(std::byte* to, const void* from, std::size_t num_bytes) {
  if (num_bytes > 0) std::memcpy(to, from, num_bytes);
}

// The element counts of all parts of all ranks.
class PartLengths {
 public:
  explicit PartLengths(int num_ranks)
      : num_ranks_(num_ranks),
        counts_(static_cast<std::size_t>(2 * num_ranks * num_ranks)) {}

  std::int64_t& sent(int from, int to) {
    return counts_[row(from) + index(to)];
  }
  std::int64_t& expected(int at, int from) {
    return counts_[row(at) + index(num_ranks_ + from)];
  }

  // Of all ranks; each fills its shard.
  FlatView view() {
    const auto row_numel = std::int64_t{2} * num_ranks_;
    return {reinterpret_cast<std::byte*>(counts_.data()), c10::ScalarType::Long,
            num_ranks_ * row_numel, row_numel};
  }

  // The same on every rank. Raises PeerError for the first two ranks that
  // disagree.
  std::int64_t checked_maximum(const std::vector<int>& global_ranks) {
    for (int from = 0; from < num_ranks_; ++from) {
      for (int to = 0; to < num_ranks_; ++to) {
        if (sent(from, to) == expected(to, from)) continue;
        throw PeerError(
            PeerError::Kind::kDiverged,
            fmt::format(
                "rank {} sends {} elements to rank {}, which expects {}",
                global_ranks[index(from)], sent(from, to),
                global_ranks[index(to)], expected(to, from)));
      }
    }
    return *std::max_element(counts_.begin(), counts_.end());
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  std::size_t row(int rank) const { return index(2 * num_ranks_ * rank); }

  const int num_ranks_;
  std::vector<std::int64_t> counts_;
};

struct PartsExchange {
  int rank = 0;
  std::vector<int> global_ranks;
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> inputs;

  std::int64_t operator()(GroupTransport& transport,
                          const CollectiveCall& call) const;
};

std::int64_t PartsExchange::operator()(GroupTransport& transport,
                                       const CollectiveCall& call) const {
  const auto size = static_cast<int>(global_ranks.size());
  PartLengths lengths(size);
  for (int peer = 0; peer < size; ++peer) {
    const auto i = static_cast<std::size_t>(peer);
    lengths.sent(rank, peer) = inputs[i].numel();
    lengths.expected(rank, peer) = outputs[i].numel();
  }
  std::int64_t bytes = transport.all_gather(call, {lengths.view()});
  const std::int64_t longest = lengths.checked_maximum(global_ranks);

  CollectiveCall step = call;
  step.numel = size * longest;
  const auto padded = [&] {
    return at::empty({size * longest}, inputs.front().options());
  };
  const at::Tensor to_peers = padded();
  const at::Tensor from_peers = padded();
  const auto view_of = [&](const at::Tensor& tensor) {
    return FlatView{bytes_of(tensor), call.dtype, size * longest, longest};
  };
  const FlatView sent = view_of(to_peers);
  const FlatView received = view_of(from_peers);
  for (int peer = 0; peer < size; ++peer) {
    const at::Tensor& input = inputs[static_cast<std::size_t>(peer)];
    copy_part(sent.shard(peer), input.const_data_ptr(), input.nbytes());
  }
  bytes += transport.all_to_all(step, received, sent);
  for (int peer = 0; peer < size; ++peer) {
    const at::Tensor& output = outputs[static_cast<std::size_t>(peer)];
    copy_part(bytes_of(output), received.shard(peer), output.nbytes());
  }
  return bytes;
}

}  // namespace

Pending all_to_all_parts(Group& group, std::vector<at::Tensor> outputs,
                         std::vector<at::Tensor> inputs) {
  const auto size = static_cast<std::size_t>(group.size());
  TORCH_CHECK_VALUE(outputs.size() == size && inputs.size() == size, "[rank ",
                    group.global_rank(), "] group '", group.name(),
                    "': all_to_all: expected one part for each of ", size,
                    " ranks but found ", outputs.size(), " outputs and ",
                    inputs.size(), " inputs");
  GroupImpl& impl = group.impl();
  CollectiveCall call;
  call.kind = Collective::kAllToAll;
  call.dtype = inputs.front().scalar_type();
  call.num_tensors = group.size();
  call.numel = CollectiveCall::kUnknownNumel;
  for (const auto* parts : {&outputs, &inputs}) {
    for (const at::Tensor& part : *parts) {
      TORCH_INTERNAL_ASSERT(part.is_contiguous() && part.device().is_cpu());
      TORCH_CHECK_VALUE(part.scalar_type() == call.dtype, "[rank ",
                        group.global_rank(), "] group '", group.name(),
                        "': all_to_all: expected tensors of one dtype but "
                        "found ",
                        call.dtype, " and ", part.scalar_type());
      // A tensor without memory raises here, not on the group's thread.
      part.const_data_ptr();
    }
  }
  if (size == 1) {
    TORCH_CHECK_VALUE(outputs[0].numel() == inputs[0].numel(), "[rank ",
                      group.global_rank(), "] group '", group.name(),
                      "': all_to_all: expected ", inputs[0].numel(),
                      " elements of output but found ", outputs[0].numel());
    copy_part(bytes_of(outputs[0]), inputs[0].const_data_ptr(),
              inputs[0].nbytes());
    return impl.count_local(Collective::kAllToAll);
  }
  return impl.issue(call, PartsExchange{group.rank(), group.global_ranks(),
                                        std::move(outputs), std::move(inputs)});
}

}  // namespace nfold
