#include "comm/host_blocks.h"

#include <algorithm>
#include <set>

namespace nfold {
namespace {

bool is_power_of_two(int number) { return (number & (number - 1)) == 0; }

}  // namespace

std::optional<HostBlocks> host_blocks(const std::vector<std::string>& hosts) {
  const auto size = static_cast<int>(hosts.size());
  const std::set<std::string> names(hosts.begin(), hosts.end());
  const auto num_hosts = static_cast<int>(names.size());
  if (num_hosts < 2 || size % num_hosts != 0 || size == num_hosts) {
    return std::nullopt;
  }
  const HostBlocks blocks{num_hosts, size / num_hosts};
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const std::size_t first =
        i - i % static_cast<std::size_t>(blocks.ranks_per_host);
    if (hosts[i] != hosts[first]) return std::nullopt;
  }
  return blocks;
}

bool combines_by_host(const HostBlocks& blocks, ReduceOp op,
                      c10::ScalarType dtype) {
  if (op == ReduceOp::kMax) return true;
  if (c10::isIntegralType(dtype, /*includeBool=*/false)) return true;
  return (dtype == c10::kFloat || dtype == c10::kDouble) &&
         is_power_of_two(blocks.ranks_per_host);
}

}  // namespace nfold
