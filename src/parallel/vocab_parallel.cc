// The layers of tensor_parallel.h that are split over the vocabulary.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/init.h>

#include "nfold/collectives.h"
#include "nfold/differentiable_collectives.h"
#include "nfold/tensor_parallel.h"
#include "parallel/ignored_target.h"
#include "parallel/lone_rank.h"

namespace nfold {
namespace {

// Which indices are rows of this rank, and which rows of its own they are; 0
// for the others.
struct OwnRows {
  at::Tensor is_own;
  at::Tensor row;
};

OwnRows own_rows(const Group& group, const at::Tensor& indices,
                 std::int64_t num_own) {
  const auto row = indices - group.rank() * num_own;
  const auto is_own = row.ge(0).logical_and_(row.lt(num_own));
  return {is_own, row.masked_fill(is_own.logical_not(), 0)};
}

void check_in_vocabulary(const Group& group, const char* what,
                         const at::Tensor& is_bad, const at::Tensor& indices,
                         std::int64_t vocabulary) {
  if (!is_bad.any().item<bool>()) return;
  TORCH_CHECK_VALUE(false, "[rank ", group.global_rank(), "] ", what,
                    ": found ",
                    indices.masked_select(is_bad)[0].item<std::int64_t>(),
                    ", expected 0 to ", vocabulary - 1, ".");
}

class VocabParallelCrossEntropy
    : public torch::autograd::Function<VocabParallelCrossEntropy> {
 public:
  // logits [tokens, vocabulary / N], targets [tokens].
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::Tensor& logits, const at::Tensor& targets,
                            Group* group) {
    const auto wide = logits.to(at::kFloat);
    auto max = wide.amax(1);
    all_reduce(*group, max, ReduceOp::kMax).wait();
    auto shifted = wide - max.unsqueeze(1);
    const auto own = own_rows(*group, targets, logits.size(1));
    const auto row = own.row.unsqueeze(1);
    const auto is_other = own.is_own.logical_not();
    const auto target_logits =
        shifted.gather(1, row).squeeze(1).masked_fill_(is_other, 0);
    auto softmax = shifted.exp_();
    const auto sums = at::stack({target_logits, softmax.sum(1)});
    all_reduce(*group, sums).wait();
    softmax.div_(sums[1].unsqueeze(1));
    const auto is_ignored = targets.eq(kIgnoredTarget);
    context->save_for_backward({softmax, row, is_other, is_ignored});
    context->saved_data["dtype"] =
        static_cast<std::int64_t>(logits.scalar_type());
    return (sums[1].log() - sums[0]).masked_fill_(is_ignored, 0);
  }

  // softmax - (1 at the target), of which no other rank needs anything.
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      const torch::autograd::variable_list& grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(),
        "vocab_parallel_cross_entropy has no second derivative; gather the "
        "logits (gather_from_group) and use at::cross_entropy_loss.");
    const auto saved = context->get_saved_variables();
    const auto grad = grads[0].masked_fill(saved[3], 0).unsqueeze(1);
    auto result = saved[0] * grad;
    result.scatter_add_(1, saved[1],
                        grad.neg().masked_fill_(saved[2].unsqueeze(1), 0));
    const auto dtype =
        static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    return {result.to(dtype), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

VocabParallelEmbeddingImpl::VocabParallelEmbeddingImpl(
    const VocabParallelEmbeddingOptions& options, Group* group)
    : group_(group) {
  size_per_rank(group, "tokens of the vocabulary", options.num_embeddings);
  at::NoGradGuard no_grad;
  at::Tensor whole = at::empty({options.num_embeddings, options.embedding_dim});
  if (options.initialize) {
    options.initialize(whole);
  } else {
    torch::nn::init::normal_(whole);
  }
  weight_ = register_parameter("weight", part_of(group, whole, {.dim = 0}));
}

at::Tensor VocabParallelEmbeddingImpl::forward(const at::Tensor& tokens) {
  if (is_alone(group_)) return at::embedding(weight_, tokens);
  const std::int64_t vocabulary = weight_.size(0) * group_->size();
  check_in_vocabulary(*group_, "VocabParallelEmbedding: token",
                      tokens.lt(0).logical_or_(tokens.ge(vocabulary)), tokens,
                      vocabulary);
  const auto own = own_rows(*group_, tokens, weight_.size(0));
  const auto rows = at::embedding(weight_, own.row)
                        .masked_fill(own.is_own.logical_not().unsqueeze(-1), 0);
  return reduce_from_group(group_, rows);
}

std::optional<TensorSplit> VocabParallelEmbeddingImpl::split_of(
    const std::string& param) const {
  if (is_alone(group_) || param != "weight") return std::nullopt;
  return TensorSplit{.dim = 0};
}

at::Tensor vocab_parallel_cross_entropy(Group* group, const at::Tensor& logits,
                                        const at::Tensor& targets) {
  TORCH_CHECK_VALUE(
      logits.dim() >= 1 &&
          targets.sizes() == logits.sizes().slice(0, logits.sizes().size() - 1),
      "vocab_parallel_cross_entropy: logits are ", logits.sizes(),
      " but targets are ", targets.sizes(),
      "; expected one target for each row of logits.");
  const auto rows = logits.reshape({-1, logits.size(-1)});
  const auto flat_targets = targets.flatten();
  if (is_alone(group)) {
    return at::cross_entropy_loss(rows.to(at::kFloat), flat_targets, {},
                                  at::Reduction::None)
        .view(targets.sizes());
  }
  const std::int64_t vocabulary = logits.size(-1) * group->size();
  check_in_vocabulary(*group, "vocab_parallel_cross_entropy: target",
                      flat_targets.lt(0)
                          .logical_or_(flat_targets.ge(vocabulary))
                          .logical_and_(flat_targets.ne(kIgnoredTarget)),
                      flat_targets, vocabulary);
  return VocabParallelCrossEntropy::apply(rows, flat_targets, group)
      .view(targets.sizes());
}

}  // namespace nfold
