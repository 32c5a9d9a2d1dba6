// File: nfold/no_op.h
//
// What stands where a decorator or a scope may be given and none is wanted.
//
//   const auto forward = nfold::noop_decorator(block_forward);
//   std::conditional_t<kIsProfiled, ProfileRange, nfold::NoOpScope> scope;
#pragma once

#include <utility>

namespace nfold {

// The function itself, not a copy.
template <typename Function>
constexpr Function&& noop_decorator(Function&& function) noexcept {
  return std::forward<Function>(function);
}

// Does nothing when it begins and ends; exceptions pass through it. The user
// provided constructor keeps compilers from calling it unused.
class NoOpScope {
 public:
  NoOpScope() noexcept {}  // NOLINT(modernize-use-equals-default)
  NoOpScope(const NoOpScope&) = delete;
  NoOpScope& operator=(const NoOpScope&) = delete;
};

}  // namespace nfold
