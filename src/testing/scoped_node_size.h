// File: scoped_node_size.h
//
// While it lives, so many ranks of a world of threads count as one node.
#pragma once

#include <cstdlib>
#include <string>

namespace nfold {

class ScopedNodeSize {
 public:
  explicit ScopedNodeSize(int size) {
    ::setenv("NDEV_PER_NODE", std::to_string(size).c_str(), /*overwrite=*/1);
  }
  ~ScopedNodeSize() { ::unsetenv("NDEV_PER_NODE"); }
  ScopedNodeSize(const ScopedNodeSize&) = delete;
  ScopedNodeSize& operator=(const ScopedNodeSize&) = delete;
};

}  // namespace nfold
