// File: lone_rank.h
//
// What the layers of this folder ask of a group that may be null, which means
// the same as a group of one rank.
#pragma once

#include "nfold/group.h"

namespace nfold {

// Nothing is split and nobody is there to communicate with.
inline bool is_alone(const Group* group) {
  return group == nullptr || group->size() == 1;
}

}  // namespace nfold
