#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>
#include <fmt/format.h>

#include <limits>
#include <optional>
#include <string>

#include "nfold/config.h"

namespace nfold {
namespace {

constexpr const char* kBatch = "train_batch_size";
constexpr const char* kMicro = "train_micro_batch_size_per_gpu";
constexpr const char* kSteps = "gradient_accumulation_steps";

void check_positive(const char* name,
                    const std::optional<std::int64_t>& value) {
  TORCH_CHECK_VALUE(!value || *value > 0, name,
                    ": expected an integer of at least 1 but found ", *value);
}

// The multiples of `unit` just below and above `batch`.
std::string neighbours(std::int64_t batch, std::int64_t unit) {
  const std::int64_t below = batch / unit * unit;
  const std::int64_t above = below + unit;
  return below > 0 ? fmt::format("{} or {}", below, above)
                   : fmt::format("{}", above);
}

// micro x steps x ranks, which must fit.
std::int64_t product_of(std::int64_t micro, std::int64_t steps,
                        std::int64_t ranks) {
  std::int64_t product = 0;
  const bool overflows = c10::mul_overflows(micro, steps, &product) ||
                         c10::mul_overflows(product, ranks, &product);
  TORCH_CHECK_VALUE(!overflows, kBatch, ": the product of ", kMicro, " ", micro,
                    ", ", kSteps, " ", steps, " and ", ranks,
                    " ranks is too large");
  return product;
}

// Raises unless `unit`, the product that `factors` spells out, divides the
// batch.
void check_divisible(std::int64_t batch, std::int64_t unit,
                     const std::string& factors) {
  TORCH_CHECK_VALUE(batch % unit == 0, kBatch, ": expected a multiple of ",
                    factors, " but found ", batch,
                    "; the nearest that fit are ", neighbours(batch, unit));
}

}  // namespace

int data_parallel_size_of(const Config& config, int world_size) {
  const auto check_size = [](const char* name, std::int64_t size) {
    TORCH_CHECK_VALUE(size >= 1, name, ": expected at least 1 but found ",
                      size);
  };
  check_size("world size", world_size);
  check_size("sequence_parallel_size", config.sequence_parallel_size);
  check_size("tensor_parallel_size", config.tensor_parallel_size);
  check_size("data_parallel_size", config.data_parallel_size.value_or(1));
  std::int64_t shared = 0;
  if (c10::mul_overflows(config.sequence_parallel_size,
                         config.tensor_parallel_size, &shared)) {
    shared = std::numeric_limits<std::int64_t>::max();
  }
  TORCH_CHECK_VALUE(world_size % shared == 0, "the world size ", world_size,
                    " is not divisible by ", shared,
                    ", which is sequence_parallel_size (",
                    config.sequence_parallel_size, ") * tensor_parallel_size (",
                    config.tensor_parallel_size,
                    "); choose sizes that divide the ", world_size, " ranks");
  const auto data = world_size / static_cast<int>(shared);
  TORCH_CHECK_VALUE(
      config.data_parallel_size.value_or(data) == data, "data_parallel_size (",
      *config.data_parallel_size, ") * sequence_parallel_size (",
      config.sequence_parallel_size, ") * tensor_parallel_size (",
      config.tensor_parallel_size, ") must be the world size ", world_size,
      "; use ", data, ", or leave data_parallel_size out");
  return data;
}

BatchSizes resolve_batch(const Config& config, int data_parallel_size) {
  TORCH_CHECK_VALUE(data_parallel_size > 0,
                    "data_parallel_size: expected at least 1 but found ",
                    data_parallel_size);
  const auto& batch = config.train_batch_size;
  const auto& micro = config.train_micro_batch_size_per_gpu;
  const auto& steps = config.gradient_accumulation_steps;
  check_positive(kBatch, batch);
  check_positive(kMicro, micro);
  check_positive(kSteps, steps);
  TORCH_CHECK_VALUE(batch || micro, kBatch, " or ", kMicro,
                    ": one of the two is needed but neither is given");

  const std::int64_t ranks = data_parallel_size;
  const std::string rank_text = fmt::format("{} ranks", ranks);
  if (batch && micro && steps) {
    const std::int64_t product = product_of(*micro, *steps, ranks);
    TORCH_CHECK_VALUE(*batch == product, kBatch, ": expected ", product, " (",
                      kMicro, " ", *micro, " x ", kSteps, " ", *steps, " x ",
                      rank_text, ") but found ", *batch,
                      "; correct it, or leave one of the three out");
    return {*batch, *micro, *steps};
  }
  if (batch && micro) {
    const std::int64_t unit = product_of(*micro, 1, ranks);
    check_divisible(*batch, unit,
                    fmt::format("{} {} x {}", kMicro, *micro, rank_text));
    return {*batch, *micro, *batch / unit};
  }
  if (batch) {
    const std::int64_t num_steps = steps.value_or(1);
    const std::int64_t unit = product_of(1, num_steps, ranks);
    check_divisible(
        *batch, unit,
        steps ? fmt::format("{} {} x {}", kSteps, num_steps, rank_text)
              : rank_text);
    return {*batch, *batch / unit, num_steps};
  }
  const std::int64_t num_steps = steps.value_or(1);
  return {product_of(*micro, num_steps, ranks), *micro, num_steps};
}

}  // namespace nfold
