#include "nfold/sequence_parallel.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include "nfold/differentiable_collectives.h"
#include "nfold/tensor_parallel.h"
#include "parallel/ignored_target.h"
#include "parallel/lone_rank.h"

namespace nfold {
namespace {

// Dimensions of queries, keys and values.
constexpr std::int64_t kHeads = 1;
constexpr std::int64_t kTokens = 2;

}  // namespace

at::Tensor split_sequence(const Group* group, const at::Tensor& whole,
                          std::int64_t dim) {
  if (is_alone(group)) return whole;
  const std::int64_t length =
      size_per_rank(group, "tokens of a sequence", whole.size(dim));
  return whole.narrow(dim, group->rank() * length, length);
}

std::int64_t sequence_offset(const Group* group, std::int64_t length) {
  return is_alone(group) ? 0 : group->rank() * length;
}

at::Tensor sequence_parallel_attention(
    Group* group, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value,
    const std::function<at::Tensor(const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&)>& attention) {
  if (is_alone(group)) return attention(query, key, value);
  for (const at::Tensor* tensor : {&query, &key, &value}) {
    TORCH_CHECK_VALUE(tensor->dim() == 4,
                      "sequence_parallel_attention: expected [batch, heads, "
                      "length, head_dim] but found ",
                      tensor->sizes(), ".");
  }
  size_per_rank(group, "attention heads", query.size(kHeads));
  size_per_rank(group, "heads of keys and values", key.size(kHeads));
  const auto all_tokens = [group](const at::Tensor& own) {
    return all_to_all(group, own, kHeads, kTokens);
  };
  // Named in this order: arguments of a call would be exchanged in an order
  // that the compiler chooses.
  const auto q = all_tokens(query);
  const auto k = all_tokens(key);
  const auto v = all_tokens(value);
  return all_to_all(group, attention(q, k, v), kTokens, kHeads);
}

at::Tensor mean_over_sequence(Group* group, const at::Tensor& token_losses,
                              const at::Tensor& targets) {
  TORCH_CHECK_VALUE(token_losses.sizes() == targets.sizes(),
                    "mean_over_sequence: losses are ", token_losses.sizes(),
                    " but targets are ", targets.sizes(),
                    "; they must have one shape.");
  // The number of tokens travels with the sum. In fp64, which counts exactly.
  const auto is_counted = targets.ne(kIgnoredTarget);
  const auto own = at::stack({(token_losses * is_counted).sum(at::kDouble),
                              is_counted.sum(at::kDouble)});
  const auto all = reduce_from_group(group, own);
  return (all[0] / all[1]).to(token_losses.scalar_type());
}

at::Tensor sequence_parallel_cross_entropy(Group* group,
                                           const at::Tensor& logits,
                                           const at::Tensor& targets) {
  // Of a whole vocabulary: a tensor group of one rank.
  return mean_over_sequence(
      group, vocab_parallel_cross_entropy(nullptr, logits, targets), targets);
}

}  // namespace nfold
