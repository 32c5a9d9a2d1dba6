#include "nfold/host_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "memory/block_pool.h"

namespace nfold {
namespace {

// Smaller ones stay with the C library, which is told to keep them.
constexpr std::size_t kMinBytes = std::size_t{256} << 10;
// Of a huge page: what is mapped, and given back, at a time.
constexpr std::int64_t kPageBytes = std::int64_t{2} << 20;
// Addresses cost nothing, and few segments mean few ends where blocks stop.
constexpr std::int64_t kSegmentBytes = std::int64_t{64} << 30;

// Of the C library's heap, for the small ones: what it keeps at the end of the
// heap, and from which size on it maps each block by itself.
constexpr int kKeptHeapBytes = 256 << 20;
constexpr int kMappedHeapBytes = 32 << 20;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsSanitized = true;
#else
constexpr bool kIsSanitized = false;
#endif

// The pool counts in numbers, the system in pointers.
void* pointer_to(std::uint64_t address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

// Addresses at a page's boundary, without memory; null where there are none.
void* map_addresses(std::int64_t num_bytes) {
  const auto mapped_bytes = static_cast<std::size_t>(num_bytes + kPageBytes);
  void* mapped = ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto page = static_cast<std::uintptr_t>(kPageBytes);
  const auto first =
      (reinterpret_cast<std::uintptr_t>(mapped) + page - 1) / page * page;
  void* begin = pointer_to(first);
  // A wish: small pages do where huge ones are not permitted.
  ::madvise(begin, static_cast<std::size_t>(num_bytes), MADV_HUGEPAGE);
  return begin;
}

// block_pool.h over memory that the system gives. Addresses come in large
// segments that cost nothing until they are used. Small requests, and all
// where the system gives no addresses, go to `base`.
class HostCache : public c10::Allocator {
 public:
  explicit HostCache(c10::Allocator& base) : base_(base) {}

  c10::DataPtr allocate(std::size_t num_bytes) override {
    void* data = num_bytes < kMinBytes ? nullptr : take(num_bytes);
    if (data == nullptr) return base_.allocate(num_bytes);
    c10::profiledCPUMemoryReporter().New(data, num_bytes);
    return {data, data, raw_deleter(), c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override;

  void copy_data(void* to, const void* from,
                 std::size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }

  void free(void* data) {
    {
      const std::lock_guard lock(mutex_);
      if (pool_.give(reinterpret_cast<std::uintptr_t>(data))) {
        // Before another thread gets the address and reports it as new.
        c10::profiledCPUMemoryReporter().Delete(data);
        return;
      }
    }
    base_.raw_deleter()(data);
  }

  void release() {
    const std::lock_guard lock(mutex_);
    give_back(pool_.release_all());
  }

  HostMemoryStats stats() const {
    const std::lock_guard lock(mutex_);
    return {pool_.bytes_in_use(), pool_.resident_bytes(), reused_, fresh_};
  }

 private:
  void* take(std::size_t num_bytes) {
    const auto wanted = static_cast<std::int64_t>(num_bytes);
    const std::lock_guard lock(mutex_);
    auto taken = pool_.take(wanted);
    if (!taken && add_segment(wanted)) taken = pool_.take(wanted);
    if (!taken) return nullptr;
    give_back(taken->release);
    ++(taken->is_resident ? reused_ : fresh_);
    return pointer_to(taken->begin);
  }

  bool add_segment(std::int64_t num_bytes) {
    num_bytes = (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    // Less where the number of addresses is limited.
    for (auto size = std::max(kSegmentBytes, num_bytes);;
         size = std::max(num_bytes, size / 4 / kPageBytes * kPageBytes)) {
      if (void* begin = map_addresses(size)) {
        pool_.add_segment(reinterpret_cast<std::uintptr_t>(begin), size);
        return true;
      }
      if (size == num_bytes) return false;
    }
  }

  static void give_back(const std::vector<AddressRange>& ranges) {
    for (const auto& range : ranges) {
      ::madvise(pointer_to(range.begin),
                static_cast<std::size_t>(range.num_bytes), MADV_DONTNEED);
    }
  }

  c10::Allocator& base_;
  mutable std::mutex mutex_;  // guards everything below
  BlockPool pool_{kPageBytes};
  std::int64_t reused_ = 0;
  std::int64_t fresh_ = 0;
};

// Never destroyed: tensors may outlive everything. The deleters of torch's
// allocators are plain functions, so there can be only one.
HostCache& host_cache() {
  static auto* cache = new HostCache(*c10::GetDefaultCPUAllocator());
  return *cache;
}

void free_in_cache(void* data) { host_cache().free(data); }

c10::DeleterFnPtr HostCache::raw_deleter() const { return &free_in_cache; }

// By default the C library gives the end of its heap back as soon as 128 KiB
// are free there, which the activations of every step are once.
void keep_heap() {
#if defined(__GLIBC__)
  ::mallopt(M_TRIM_THRESHOLD, kKeptHeapBytes);
  // To set one ends that the library learns the other. This is the most that
  // it would learn.
  ::mallopt(M_MMAP_THRESHOLD, kMappedHeapBytes);
#endif
}

void release_heap() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

bool is_enabled() { return c10::GetCPUAllocator() == &host_cache(); }

}  // namespace

bool enable_host_cache() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (is_enabled()) return true;
  if (kIsSanitized || c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) {
    return false;
  }
  c10::SetCPUAllocator(&host_cache(), /*priority=*/1);
  keep_heap();
  return is_enabled();
}

void release_host_cache() {
  if (!is_enabled()) return;
  host_cache().release();
  release_heap();
}

HostMemoryStats host_memory_stats() {
  return is_enabled() ? host_cache().stats() : HostMemoryStats{};
}

}  // namespace nfold
