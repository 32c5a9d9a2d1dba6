#include "comm/gather_table.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "nfold/collectives.h"

namespace nfold {

at::Tensor gather_table(Group& group, const std::vector<std::int64_t>& values) {
  const auto count = static_cast<std::int64_t>(values.size());
  auto table = at::empty({group.size() * count}, at::kLong);
  auto own = table.narrow(0, group.rank() * count, count);
  std::copy(values.begin(), values.end(), own.mutable_data_ptr<std::int64_t>());
  all_gather(group, table, own).wait();
  return table.view({group.size(), count});
}

}  // namespace nfold
