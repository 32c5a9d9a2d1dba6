// File: live_bytes_test.h
//
// What a thread's tensors really take, as torch's allocator reports it.
//
//   const auto counter = std::make_shared<LiveBytes>();
//   const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE,
//                                   counter);
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>

namespace nfold::testing {

// Bytes of tensors that this thread has allocated and not freed.
class LiveBytes : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* /*ptr*/, std::int64_t alloc_size,
                         std::size_t /*total_allocated*/,
                         std::size_t /*total_reserved*/,
                         c10::Device /*device*/) override {
    live_ += alloc_size;
    peak_ = std::max(peak_, live_);
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t live() const { return live_; }
  std::int64_t peak() const { return peak_; }
  void restart_peak() { peak_ = live_; }

 private:
  std::int64_t live_ = 0;
  std::int64_t peak_ = 0;
};

}  // namespace nfold::testing
