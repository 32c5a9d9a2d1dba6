#include "grad/grad_bucket.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/cast_copy.h"

namespace nfold {

std::vector<std::vector<std::size_t>> plan_buckets(
    const std::vector<std::int64_t>& unit_numels,
    const std::vector<BucketKind>& unit_kinds, std::int64_t max_numel) {
  std::vector<std::vector<std::size_t>> buckets;
  std::int64_t numel = 0;
  for (std::size_t unit = unit_numels.size(); unit-- > 0;) {
    const bool fits = !buckets.empty() &&
                      numel + unit_numels[unit] <= max_numel &&
                      unit_kinds[buckets.back().back()] == unit_kinds[unit];
    if (!fits) {
      buckets.emplace_back();
      numel = 0;
    }
    buckets.back().push_back(unit);
    numel += unit_numels[unit];
  }
  return buckets;
}

UnitGradBuffer::UnitGradBuffer(const ShardedUnit& unit, at::ScalarType dtype)
    : unit_(&unit), dtype_(dtype) {
  for (const auto& param : unit.params()) {
    arrived_.emplace_back(param.tensors.size(), false);
    num_tensors_ += param.tensors.size();
  }
}

bool UnitGradBuffer::has_param(std::size_t param) const {
  const auto& tensors = arrived_[param];
  return std::find(tensors.begin(), tensors.end(), true) != tensors.end();
}

void UnitGradBuffer::add(std::size_t param, std::size_t tensor, at::Tensor grad,
                         float scale, std::size_t num_dying_views) {
  const auto range = unit_->layout().param_range(param);
  const bool is_first = !has_param(param);
  if (!arrived_[param][tensor]) {
    arrived_[param][tensor] = true;
    ++num_arrived_;
  }
  // A unit of one large parameter: its gradient is the buffer. The storage
  // must be ours alone, since the collective writes into it.
  if (is_first && !flat_.defined() && scale == 1.0f &&
      range.numel == unit_->layout().numel() && grad.scalar_type() == dtype_ &&
      grad.is_contiguous() && grad.use_count() == 1 &&
      grad.storage().use_count() == 1 + num_dying_views) {
    flat_ = grad.view({-1});
    return;
  }
  if (!flat_.defined()) {
    flat_ = at::empty({unit_->layout().numel()}, at::TensorOptions(dtype_));
  }
  if (range.numel == 0) return;
  const auto destination = flat_.narrow(0, range.begin, range.numel);
  const auto source = grad.contiguous().view({-1});
  if (is_first) {
    kernels::scaled_cast(destination, source, scale);
  } else {
    kernels::accumulate(destination, source, scale);
  }
}

std::int64_t UnitGradBuffer::bytes() const {
  return flat_.defined() ? flat_.numel() * flat_.element_size() : 0;
}

at::Tensor UnitGradBuffer::take() {
  const auto& layout = unit_->layout();
  if (!flat_.defined()) {
    flat_ = at::zeros({layout.numel()}, at::TensorOptions(dtype_));
  } else {
    for (const auto& residue : residues_in(layout, {0, layout.numel()})) {
      flat_.narrow(0, residue.begin, residue.numel).zero_();
    }
    for (std::size_t param = 0; param < arrived_.size(); ++param) {
      const auto range = layout.param_range(param);
      if (!has_param(param) && range.numel > 0) {
        flat_.narrow(0, range.begin, range.numel).zero_();
      }
    }
  }
  auto flat = std::move(flat_);
  clear();
  return flat;
}

void UnitGradBuffer::clear() {
  flat_.reset();
  for (auto& tensors : arrived_) tensors.assign(tensors.size(), false);
  num_arrived_ = 0;
}

}  // namespace nfold
