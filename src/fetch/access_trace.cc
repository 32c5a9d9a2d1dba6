#include "fetch/access_trace.h"

namespace nfold {

std::size_t TraceCursor::advance(std::size_t unit) {
  const auto size = trace_->size();
  if (size == 0) return kLost;
  // Starting behind the last match, around the end, and back to it: a repeat
  // of the unit at hand matters least, since it is whole anyway.
  const auto first = position_ == kLost ? 0 : position_ + 1;
  for (std::size_t i = 0; i < size; ++i) {
    const auto entry = (first + i) % size;
    if ((*trace_)[entry] == unit) return position_ = entry;
  }
  return position_ = kLost;
}

}  // namespace nfold
