// File: lone_rank.h
//
// What the layers of this folder ask of a group that may be null, which means
// the same as a group of one rank.
#pragma once

#include <cstddef>

#include "nfold/group.h"

namespace nfold {

// Nothing is split and nobody is there to communicate with.
inline bool is_alone(const Group* group) {
  return group == nullptr || group->size() == 1;
}

// This rank as errors name it.
inline int world_rank(const Group& group) {
  return group.global_ranks()[static_cast<std::size_t>(group.rank())];
}

}  // namespace nfold
