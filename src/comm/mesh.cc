#include "nfold/mesh.h"

#include <c10/util/Exception.h>

#include <numeric>
#include <vector>

namespace nfold {
namespace {

constexpr char kDataParallel[] = "data_parallel";

std::string names_of(
    const std::map<std::string, std::unique_ptr<Group>>& groups) {
  std::string names;
  for (const auto& [name, group] : groups) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

}  // namespace

// `config` will ask for more groups as more of its sections are supported.
Mesh::Mesh(const World& world, const Config& /*config*/)
    : rank_(world.rank()), world_size_(world.size()) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  groups_[kDataParallel] = world.new_group(kDataParallel, ranks);
}

Group& Mesh::group(const std::string& name) const {
  const auto found = groups_.find(name);
  TORCH_CHECK_VALUE(found != groups_.end(), "[rank ", rank_,
                    "] the mesh has no group '", name, "'; it has ",
                    names_of(groups_));
  return *found->second;
}

}  // namespace nfold
