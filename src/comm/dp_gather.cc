#include "nfold/dp_gather.h"

#include <ATen/ATen.h>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/partition.h"

namespace nfold {
namespace {

void check_divides(const FlatGroup& each, std::size_t index) {
  TORCH_CHECK_VALUE(each.group != nullptr && each.flat.defined(),
                    "all_gather_dp_groups: entry ", index,
                    ": expected a buffer and a group");
  TORCH_CHECK_VALUE(
      each.flat.is_contiguous() && each.flat.numel() % each.group->size() == 0,
      "[rank ", each.group->global_rank(), "] all_gather_dp_groups: entry ",
      index, ": expected a contiguous buffer of a multiple of ",
      each.group->size(), " elements, the size of group '", each.group->name(),
      "', but found ", each.flat.numel(),
      "; pad it (padding_numel in partition.h)");
}

void gather_piece(Group& group, const at::Tensor& parts,
                  const GatherPiece& piece) {
  const auto columns = parts.narrow(1, piece.begin, piece.numel);
  const auto staging = at::empty({columns.numel()}, parts.options());
  all_gather(group, staging, columns[group.rank()].contiguous()).wait();
  columns.copy_(staging.view(columns.sizes()));
}

}  // namespace

void all_gather_dp_groups(const std::vector<FlatGroup>& groups,
                          const DpGatherOptions& options) {
  for (std::size_t i = 0; i < groups.size(); ++i) check_divides(groups[i], i);
  for (const auto& [flat, group] : groups) {
    const std::int64_t num_ranks = group->size();
    if (num_ranks == 1) continue;
    const auto parts = flat.detach().view({num_ranks, -1});
    if (options.bucket_numel == 0) {
      all_gather(*group, parts.view({-1}), parts[group->rank()]).wait();
      continue;
    }
    for (const auto& piece :
         plan_gather_pieces(parts.size(1), num_ranks, options.bucket_numel,
                            options.start_alignment)) {
      if (piece.numel > 0) gather_piece(*group, parts, piece);
    }
  }
}

}  // namespace nfold
