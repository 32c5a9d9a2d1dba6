#include "nfold/quantized_weight.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <utility>

namespace nfold {

QuantizedWeight::QuantizedWeight(const at::Tensor& weight,
                                 QuantizedWeightOptions options)
    : codec_{.bits = options.num_bits,
             .is_symmetric = false,
             .block_numel = options.group_size},
      sizes_(weight.sizes().vec()),
      group_dim_(options.group_dim),
      dtype_(weight.scalar_type()) {
  encoded_bytes(0, codec_);  // checks it
  TORCH_CHECK_VALUE(group_dim_ >= 0 && group_dim_ < weight.dim(),
                    "QuantizedWeight: expected a group_dim from 0 to ",
                    weight.dim() - 1, " but found ", group_dim_);
  TORCH_CHECK_VALUE(weight.size(group_dim_) % options.group_size == 0,
                    "QuantizedWeight: dimension ", group_dim_, " of ",
                    weight.sizes(), " is not divisible by group_size ",
                    options.group_size);
  // Blocks lie along the last dimension.
  encoded_ =
      quantized(weight.detach().movedim(group_dim_, -1).contiguous(), codec_);
}

at::Tensor QuantizedWeight::dequantized() const {
  auto moved = sizes_;
  const auto grouped = moved[static_cast<std::size_t>(group_dim_)];
  moved.erase(moved.begin() + group_dim_);
  moved.push_back(grouped);
  return nfold::dequantized(encoded_, c10::multiply_integers(sizes_), dtype_,
                            codec_)
      .view(moved)
      .movedim(-1, group_dim_)
      .contiguous();
}

}  // namespace nfold
