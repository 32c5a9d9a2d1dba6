#include "comm/collectives_call.h"

#include <fmt/format.h>

#include <cstring>

#include "base/hash.h"

namespace nfold {
namespace {

std::string dtype_name(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return "float32";
    case c10::ScalarType::Double:
      return "float64";
    case c10::ScalarType::Half:
      return "float16";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    case c10::ScalarType::Byte:
      return "uint8";
    case c10::ScalarType::Char:
      return "int8";
    case c10::ScalarType::Int:
      return "int32";
    case c10::ScalarType::Long:
      return "int64";
    default:
      return c10::toString(dtype);
  }
}

}  // namespace

bool differs(const CollectiveCall& a, const CollectiveCall& b) {
  CollectiveCall other = b;
  other.is_empty = a.is_empty;
  return std::memcmp(&a, &other, sizeof(CollectiveCall)) != 0;
}

std::string describe(const CollectiveCall& call) {
  std::string text = fmt::format("{} #{}", name_of(call.kind), call.sequence);
  if (call.numel == CollectiveCall::kUnknownNumel) {
    text += fmt::format(" of {}", dtype_name(call.dtype));
  } else if (call.kind != Collective::kBarrier) {
    text += fmt::format(" of {} {}", call.numel, dtype_name(call.dtype));
  }
  if (call.num_tensors != 1) {
    text += fmt::format(" in {} tensors", call.num_tensors);
  }
  if (call.op == ReduceOp::kMax) text += " (max)";
  if (call.source >= 0) text += fmt::format(" from group rank {}", call.source);
  return text;
}

int message_tag_of(const CollectiveCall& call) {
  // Not the sequence number: the backend keeps something for every tag it has
  // seen, so the tags of a run must be few.
  CollectiveCall shape = call;
  shape.sequence = 0;
  shape.tag = 0;
  shape.is_empty = false;
  const std::uint64_t hash = hash64(&shape, sizeof(shape));
  return static_cast<int>(2 + (hash & 0x1fffffff) * 2);
}

}  // namespace nfold
