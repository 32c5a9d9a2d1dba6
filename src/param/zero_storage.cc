#include "param/zero_storage.h"

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <utility>

#include "param/deferred_storage.h"

namespace nfold {
namespace {

// Templates, so that what libtorch before 2.13 does not have is looked up only
// where it is there.
template <typename Impl>
constexpr bool has_write_hooks() {
  return requires(Impl impl) { impl.clear_materializer(); };
}

template <typename Impl>
void set_write_hook(Impl* storage, WriteHook hook) {
  if constexpr (has_write_hooks<Impl>()) {
    if (hook != nullptr) {
      storage->set_materializer(hook);
    } else {
      storage->clear_materializer();
    }
  }
}

struct Mapping {
  void* address;
  std::size_t nbytes;

  static void unmap(void* context) {
    const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(context));
    munmap(mapping->address, mapping->nbytes);
  }
};

}  // namespace

std::optional<c10::Storage> make_zero_storage(std::size_t nbytes,
                                              c10::Device device,
                                              WriteHook on_write) {
  if (!has_write_hooks<c10::StorageImpl>() || !device.is_cpu() || nbytes == 0) {
    return std::nullopt;
  }
  // Pages that are only read are all the same page, which is the kernel's.
  void* address =
      mmap(nullptr, nbytes, PROT_READ,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, /*fd=*/-1, 0);
  if (address == MAP_FAILED) return std::nullopt;
  c10::DataPtr zeros(address, new Mapping{address, nbytes}, &Mapping::unmap,
                     device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), nbytes,
                       std::move(zeros), c10::GetAllocator(device.type()),
                       /*resizable=*/true);
  set_write_hook(storage.unsafeGetStorageImpl(), on_write);
  return storage;
}

c10::Storage seal_zero_storage(const c10::Storage& storage,
                               std::string why_without_memory) {
  set_write_hook(storage.unsafeGetStorageImpl(), nullptr);
  return defer_storage(storage, std::move(why_without_memory));
}

void give_zeros(c10::StorageImpl* storage) {
  c10::Storage memory = allocate_storage(storage->nbytes(), storage->device());
  std::memset(memory.mutable_data(), 0, memory.nbytes());
  storage->set_data_ptr_noswap(
      std::move(memory.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
}

}  // namespace nfold
