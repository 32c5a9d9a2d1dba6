// File: store_text.h
//
// Text in a c10d store, which holds bytes.
//
//   set_text(store, "segment", name);
//   const std::string name = text_at(store, "segment");
#pragma once

#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace nfold {

inline void set_text(c10d::Store& store, const std::string& key,
                     const std::string& text) {
  store.set(key, std::vector<std::uint8_t>(text.begin(), text.end()));
}

// Waits for the key as the store does.
inline std::string text_at(c10d::Store& store, const std::string& key) {
  const auto bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

}  // namespace nfold
