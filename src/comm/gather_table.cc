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

std::vector<std::string> gather_texts(Group& group, const std::string& own,
                                      std::int64_t max_bytes) {
  auto table = at::zeros({group.size(), max_bytes}, at::kByte);
  auto row = table[group.rank()];
  const auto cut = own.substr(0, static_cast<std::size_t>(max_bytes));
  std::copy(cut.begin(), cut.end(), row.mutable_data_ptr<std::uint8_t>());
  all_gather(group, table.view({-1}), row).wait();
  std::vector<std::string> texts;
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto* text = table.const_data_ptr<std::uint8_t>() + rank * max_bytes;
    texts.emplace_back(text, std::find(text, text + max_bytes, 0));
  }
  return texts;
}

}  // namespace nfold
