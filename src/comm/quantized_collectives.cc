#include "nfold/quantized_collectives.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <memory>
#include <utility>

#include "base/profile.h"
#include "kernels/quantize.h"

namespace nfold {
namespace {

void check_shards(const char* function, const std::vector<at::Tensor>& tensors,
                  std::int64_t num_shards) {
  TORCH_CHECK_VALUE(!tensors.empty(), function,
                    ": expected at least one tensor but found none");
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.numel() % num_shards == 0, function,
                      ": expected a multiple of ", num_shards,
                      " elements, one shard for each rank, but found ",
                      tensor.numel());
  }
}

}  // namespace

// Equal messages to all ranks of a hop: in each the same parts, encoded.
// Outside of the unnamed namespace, as a class with a friend holds one.
class HopMessages {
 public:
  HopMessages(int num_messages, const std::vector<std::int64_t>& part_numels,
              const BlockCodec& codec) {
    for (const auto numel : part_numels) {
      begins_.push_back(message_bytes_);
      message_bytes_ += encoded_bytes(numel, codec);
    }
    begins_.push_back(message_bytes_);
    bytes_ = at::empty({num_messages * message_bytes_}, at::kByte);
  }

  at::Tensor part(std::int64_t message, std::size_t index) const {
    return bytes_.narrow(0, message * message_bytes_ + begins_[index],
                         begins_[index + 1] - begins_[index]);
  }
  const at::Tensor& bytes() const { return bytes_; }

 private:
  std::vector<std::int64_t> begins_;
  std::int64_t message_bytes_ = 0;
  at::Tensor bytes_;
};

at::Tensor EncodedShards::bytes_of(std::int64_t first,
                                   std::int64_t count) const {
  const auto bytes = encoded.numel() / num_shards;
  return encoded.narrow(0, first * bytes, count * bytes);
}

EncodedShards empty_shards(at::Tensor output, std::int64_t num_shards,
                           const BlockCodec& codec) {
  const auto bytes = encoded_bytes(output.numel() / num_shards, codec);
  return {std::move(output), at::empty({num_shards * bytes}, at::kByte),
          num_shards};
}

void encode_shards(const EncodedShards& to, std::int64_t first,
                   const at::Tensor& values, const BlockCodec& codec) {
  const auto numel = to.output.numel() / to.num_shards;
  if (numel == 0) return;
  for (std::int64_t i = 0; i * numel < values.numel(); ++i) {
    kernels::quantize(to.bytes_of(first + i, 1),
                      values.narrow(0, i * numel, numel), codec);
  }
}

Pending all_gather_encoded(Group& group, std::vector<EncodedShards> shards,
                           const BlockCodec& codec) {
  std::vector<at::Tensor> encoded;
  encoded.reserve(shards.size());
  for (const auto& each : shards) encoded.push_back(each.encoded);
  auto gathered = all_gather_coalesced(group, std::move(encoded));
  return {std::move(gathered), [shards = std::move(shards), codec] {
            const ProfileRange range("nfold::decode_shards");
            for (const auto& each : shards) {
              const auto numel = each.output.numel() / each.num_shards;
              for (std::int64_t i = 0; i < each.num_shards; ++i) {
                kernels::dequantize(each.output.narrow(0, i * numel, numel),
                                    each.bytes_of(i, 1), codec);
              }
            }
          }};
}

Pending quantized_all_gather_coalesced(Group& group,
                                       std::vector<at::Tensor> outputs,
                                       const BlockCodec& codec) {
  check_shards("quantized_all_gather", outputs, group.size());
  std::vector<EncodedShards> shards;
  for (const auto& output : outputs) {
    const auto numel = output.numel() / group.size();
    auto each = empty_shards(output, group.size(), codec);
    encode_shards(each, group.rank(),
                  output.narrow(0, group.rank() * numel, numel), codec);
    shards.push_back(std::move(each));
  }
  return all_gather_encoded(group, std::move(shards), codec);
}

int ReductionHops::rank() const {
  const int node = inter_node ? inter_node->rank() : 0;
  const int place = intra_node ? intra_node->rank() : 0;
  return node * places() + place;
}

void ErrorFeedback::drop() {
  count_ = 0;
  for (auto& errors : errors_) {
    for (const auto& error : errors) error.zero_();
  }
}

void ErrorFeedback::scale(float ratio) {
  const auto codec = kernels::error_codec_of(codec_);
  for (std::size_t hop = 0; hop < errors_.size(); ++hop) {
    for (std::size_t i = 0; i < errors_[hop].size(); ++i) {
      kernels::scale_encoded(errors_[hop][i], numels_[hop][i], codec, ratio);
    }
  }
}

std::int64_t ErrorFeedback::bytes() const {
  std::int64_t bytes = 0;
  for (const auto& errors : errors_) {
    for (const auto& error : errors) bytes += error.numel();
  }
  return bytes;
}

void ErrorFeedback::count() {
  if (++count_ > options_.reset_period) {
    drop();
    count_ = 1;
  }
}

std::vector<at::Tensor>& ErrorFeedback::errors_of(
    std::size_t hop, const std::vector<std::int64_t>& numels,
    const BlockCodec& codec) {
  auto& errors = errors_[hop];
  if (errors.empty()) {
    codec_ = codec;
    numels_[hop] = numels;
    for (const auto numel : numels) {
      errors.push_back(at::zeros(
          {encoded_bytes(numel, kernels::error_codec_of(codec))}, at::kByte));
    }
  }
  TORCH_CHECK_VALUE(numels_[hop] == numels && codec_ == codec,
                    "quantized_reduce_scatter: the error feedback belongs to "
                    "tensors of other sizes, or to another codec; keep one for "
                    "each set of tensors");
  return errors;
}

// One reduction on its way.
//
// [Note: Parts]
// Shard [node][place] of tensor i is what rank [node][place] owns. In the first
// hop the rank at `place` gets, from each rank of its node, the shards [m]
// [place] of all nodes m and all tensors: parts m * num_tensors + i. In the
// second it sends the node's sum of shard [m][place] to node m: parts i.
class QuantizedReduction {
 public:
  QuantizedReduction(const ReductionHops& hops, std::vector<at::Tensor> inputs,
                     const BlockCodec& codec, ErrorFeedback* feedback)
      : hops_(hops),
        inputs_(std::move(inputs)),
        codec_(codec),
        feedback_(feedback) {
    if (feedback_) feedback_->count();
  }

  Pending start_intra_node() {
    const ProfileRange range("nfold::encode_gradients");
    std::vector<std::int64_t> numels;
    for (int node = 0; node < hops_.nodes(); ++node) {
      for (const auto& input : inputs_) numels.push_back(shard_numel(input));
    }
    return start(0, *hops_.intra_node, numels,
                 [this](std::int64_t place, std::size_t part) {
                   return shard(input_of(part), node_of(part), place);
                 });
  }

  // Of each node's part the sum over this node.
  void finish_intra_node() {
    const ProfileRange range("nfold::sum_encoded_gradients");
    if (hops_.nodes() == 1) return finish(hops_.places());
    for (const auto& input : inputs_) {
      sums_.push_back(
          at::empty({hops_.nodes() * shard_numel(input)}, at::kFloat));
    }
    for (std::size_t part = 0; part < num_parts(); ++part) {
      auto& sums = sums_[part % inputs_.size()];
      const auto numel = sums.numel() / hops_.nodes();
      sum(sums.narrow(0, node_of(part) * numel, numel), part, hops_.places());
    }
  }

  Pending start_inter_node() {
    const ProfileRange range("nfold::encode_gradients");
    std::vector<std::int64_t> numels;
    numels.reserve(inputs_.size());
    for (const auto& input : inputs_) numels.push_back(shard_numel(input));
    return start(1, *hops_.inter_node, numels,
                 [this](std::int64_t node, std::size_t part) {
                   if (sums_.empty()) return shard(inputs_[part], node, 0);
                   const auto numel = sums_[part].numel() / hops_.nodes();
                   return sums_[part].narrow(0, node * numel, numel);
                 });
  }

  void finish_inter_node() {
    const ProfileRange range("nfold::sum_encoded_gradients");
    finish(hops_.nodes());
  }

 private:
  std::int64_t num_ranks() const {
    return std::int64_t{hops_.places()} * hops_.nodes();
  }
  std::size_t num_parts() const {
    return inputs_.size() * static_cast<std::size_t>(hops_.nodes());
  }
  const at::Tensor& input_of(std::size_t part) const {
    return inputs_[part % inputs_.size()];
  }
  std::int64_t node_of(std::size_t part) const {
    return static_cast<std::int64_t>(part / inputs_.size());
  }
  std::int64_t shard_numel(const at::Tensor& input) const {
    return input.numel() / num_ranks();
  }
  at::Tensor shard(const at::Tensor& input, std::int64_t node,
                   std::int64_t place) const {
    const auto numel = shard_numel(input);
    return input.narrow(0, (node * hops_.places() + place) * numel, numel);
  }

  // value_of(message, part): what is sent.
  template <typename ValueOf>
  Pending start(std::size_t hop, Group& group,
                const std::vector<std::int64_t>& part_numels,
                const ValueOf& value_of) {
    const HopMessages sent(group.size(), part_numels, codec_);
    received_ =
        std::make_unique<HopMessages>(group.size(), part_numels, codec_);
    std::vector<std::int64_t> numels;
    for (int message = 0; message < group.size(); ++message) {
      numels.insert(numels.end(), part_numels.begin(), part_numels.end());
    }
    auto* errors =
        feedback_ ? &feedback_->errors_of(hop, numels, codec_) : nullptr;
    std::size_t index = 0;
    for (int message = 0; message < group.size(); ++message) {
      for (std::size_t part = 0; part < part_numels.size(); ++part, ++index) {
        const auto value = value_of(message, part);
        if (errors) {
          kernels::quantize_with_feedback(sent.part(message, part),
                                          (*errors)[index], value, codec_,
                                          feedback_->options_.beta);
        } else {
          kernels::quantize(sent.part(message, part), value, codec_);
        }
      }
    }
    return all_to_all(group, received_->bytes(), sent.bytes());
  }

  void sum(const at::Tensor& to, std::size_t part, int num_messages) {
    std::vector<at::Tensor> encoded;
    encoded.reserve(static_cast<std::size_t>(num_messages));
    for (int message = 0; message < num_messages; ++message) {
      encoded.push_back(received_->part(message, part));
    }
    kernels::dequantize_sum(to, encoded, codec_);
  }

  // Into the own part of each tensor.
  void finish(int num_messages) {
    const auto numel_of = [this](std::size_t i) {
      return shard_numel(inputs_[i]);
    };
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      sum(inputs_[i].narrow(0, hops_.rank() * numel_of(i), numel_of(i)), i,
          num_messages);
    }
    received_.reset();
    sums_.clear();
  }

  ReductionHops hops_;
  std::vector<at::Tensor> inputs_;
  BlockCodec codec_;
  ErrorFeedback* feedback_;
  std::unique_ptr<HopMessages> received_;
  std::vector<at::Tensor> sums_;  // of each tensor, fp32 [nodes * S]
};

Pending quantized_reduce_scatter_coalesced(const ReductionHops& hops,
                                           std::vector<at::Tensor> inputs,
                                           const BlockCodec& codec,
                                           ErrorFeedback* feedback) {
  check_shards("quantized_reduce_scatter", inputs,
               std::int64_t{hops.places()} * hops.nodes());
  if (hops.places() == 1 && hops.nodes() == 1) return {};
  const auto reduction = std::make_shared<QuantizedReduction>(
      hops, std::move(inputs), codec, feedback);
  if (hops.places() == 1) {
    auto sent = reduction->start_inter_node();
    return {std::move(sent), [reduction] { reduction->finish_inter_node(); }};
  }
  auto sent = reduction->start_intra_node();
  return {std::move(sent), [reduction, is_two_hops = hops.nodes() > 1] {
            reduction->finish_intra_node();
            if (!is_two_hops) return;
            reduction->start_inter_node().wait();
            reduction->finish_inter_node();
          }};
}

}  // namespace nfold
