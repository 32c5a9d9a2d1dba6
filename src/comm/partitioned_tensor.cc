#include "nfold/partitioned_tensor.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/partition.h"

namespace nfold {
namespace {

// Reads a vector from front to end.
class MetaReader {
 public:
  explicit MetaReader(const at::Tensor& meta) {
    TORCH_CHECK_VALUE(
        meta.defined() && meta.scalar_type() == at::kLong && meta.dim() == 1,
        "PartitionedTensor: meta: expected a vector of int64 as to_meta() "
        "gives but found ",
        meta.defined() ? c10::str(meta.scalar_type(), " ", meta.sizes())
                       : "none");
    const auto values = meta.cpu().contiguous();
    values_.assign(values.const_data_ptr<std::int64_t>(),
                   values.const_data_ptr<std::int64_t>() + values.numel());
  }

  std::int64_t next() { return take(1)[0]; }

  std::vector<std::int64_t> take(std::int64_t count) {
    const auto left = static_cast<std::int64_t>(values_.size()) - position_;
    TORCH_CHECK_VALUE(0 <= count && count <= left,
                      "PartitionedTensor: meta: expected ", count,
                      " more numbers after the first ", position_,
                      " but found ", left);
    const auto begin = values_.begin() + position_;
    position_ += count;
    return {begin, begin + count};
  }

 private:
  std::vector<std::int64_t> values_;
  std::int64_t position_ = 0;
};

void check_equal(const char* what, std::int64_t expected, std::int64_t found) {
  TORCH_CHECK_VALUE(found == expected, "PartitionedTensor: meta: expected ",
                    what, " ", expected, " of the group but found ", found);
}

}  // namespace

PartitionedTensor::PartitionedTensor(const at::Tensor& tensor, Group& group)
    : PartitionedTensor(group, tensor.device()) {
  full_size_ = tensor.sizes().vec();
  bounds_ = partition_uniform(tensor.numel(), group.size());
  const auto begin = bounds_[group.rank()];
  local_ = tensor.detach()
               .contiguous()
               .view({-1})
               .narrow(0, begin, bounds_[group.rank() + 1] - begin)
               .clone();
}

PartitionedTensor PartitionedTensor::from_meta(
    const at::Tensor& meta, const at::Tensor& local, Group& group,
    std::optional<c10::Device> device) {
  MetaReader reader(meta);
  PartitionedTensor made(group, device.value_or(local.device()));
  made.full_size_ = reader.take(reader.next());
  check_equal("number of parts", group.size(), reader.next());
  check_equal("rank", group.rank(), reader.next());
  made.bounds_ = reader.take(group.size() + 1);
  const auto numel = c10::multiply_integers(made.full_size_);
  TORCH_CHECK_VALUE(
      made.bounds_.front() == 0 && made.bounds_.back() == numel &&
          std::is_sorted(made.bounds_.begin(), made.bounds_.end()),
      "PartitionedTensor: meta: expected ascending bounds from 0 to ", numel,
      " but found ", at::IntArrayRef(made.bounds_));
  const auto local_numel =
      made.bounds_[group.rank() + 1] - made.bounds_[group.rank()];
  TORCH_CHECK_VALUE(local.numel() == local_numel,
                    "PartitionedTensor: local part: expected ", local_numel,
                    " elements as meta says but found ", local.numel());
  made.local_ = local.detach().contiguous().view({-1});
  return made;
}

at::Tensor PartitionedTensor::to_meta() const {
  std::vector<std::int64_t> meta{static_cast<std::int64_t>(full_size_.size())};
  meta.insert(meta.end(), full_size_.begin(), full_size_.end());
  meta.push_back(group_->size());
  meta.push_back(group_->rank());
  meta.insert(meta.end(), bounds_.begin(), bounds_.end());
  return at::tensor(meta, at::kLong).to(device_);
}

bool PartitionedTensor::is_even_split() const {
  for (std::size_t part = 1; part + 1 < bounds_.size(); ++part) {
    if (bounds_[part + 1] - bounds_[part] != bounds_[1]) return false;
  }
  return true;
}

at::Tensor PartitionedTensor::full(std::optional<c10::Device> device) const {
  const auto flat = at::empty({bounds_.back()}, local_.options());
  if (is_even_split()) {
    all_gather(*group_, flat, local_).wait();
  } else {
    for (int part = 0; part < group_->size(); ++part) {
      const auto numel = bounds_[part + 1] - bounds_[part];
      if (numel == 0) continue;
      const auto piece = flat.narrow(0, bounds_[part], numel);
      if (part == group_->rank()) piece.copy_(local_);
      broadcast(*group_, piece, part).wait();
    }
  }
  return flat.view(full_size_).to(device.value_or(device_));
}

}  // namespace nfold
