#include "comm/two_hops.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace nfold {

Pending all_gather_two_hops(Group& inter_node, Group& intra_node,
                            std::vector<at::Tensor> outputs) {
  const std::int64_t nodes = inter_node.size();
  const std::int64_t places = intra_node.size();
  const std::int64_t node = inter_node.rank();
  const std::int64_t place = intra_node.rank();
  // [nodes][places][S]: what arrives between nodes is a column, what travels
  // within one are its rows.
  std::vector<at::Tensor> columns;
  std::vector<at::Tensor> rows;
  for (const auto& output : outputs) {
    TORCH_CHECK_VALUE(output.numel() % (nodes * places) == 0,
                      "all_gather_two_hops: expected tensors of ", nodes, " x ",
                      places, " equal shards but found ", output.numel(),
                      " elements");
    const auto table = output.view({nodes, places, -1});
    auto column = at::empty({output.numel() / places}, output.options());
    column.view({nodes, -1})[node].copy_(table[node][place]);
    columns.push_back(std::move(column));
    for (std::int64_t row = 0; row < nodes; ++row) {
      rows.push_back(table[row].view({-1}));
    }
  }
  all_gather_coalesced(inter_node, columns).wait();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    outputs[i]
        .view({nodes, places, -1})
        .select(1, place)
        .copy_(columns[i].view({nodes, -1}));
  }
  return all_gather_coalesced(intra_node, std::move(rows));
}

}  // namespace nfold
