#include "param/deferred_storage.h"

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace nfold {
namespace {

// libtorch 2.11 has no such text. A template, so that the calls are looked up
// only where they exist.
template <typename StorageImpl>
void forbid_access(StorageImpl* storage, std::string why) {
  if constexpr (requires { storage->clear_data_ptr_access_error_msg_(); }) {
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(
        std::move(why));
  }
}

template <typename StorageImpl>
void allow_access(StorageImpl* storage) {
  if constexpr (requires { storage->clear_data_ptr_access_error_msg_(); }) {
    storage->clear_data_ptr_access_error_msg_();
  }
}

c10::Storage storage_of(std::size_t nbytes, c10::DataPtr data) {
  c10::Allocator* allocator = c10::GetAllocator(data.device().type());
  return c10::Storage(c10::Storage::use_byte_size_t(), nbytes, std::move(data),
                      allocator, /*resizable=*/true);
}

}  // namespace

c10::Storage make_deferred_storage(std::size_t nbytes, c10::Device device,
                                   std::string why_without_memory) {
  c10::Storage storage = storage_of(nbytes, c10::DataPtr(nullptr, device));
  forbid_access(storage.unsafeGetStorageImpl(), std::move(why_without_memory));
  return storage;
}

c10::Storage defer_storage(const c10::Storage& storage,
                           std::string why_without_memory) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  c10::Storage memory = storage_of(
      impl->nbytes(), std::move(impl->_mutable_data_ptr_no_checks()));
  impl->set_data_ptr_noswap(c10::DataPtr(nullptr, memory.device()));
  forbid_access(impl, std::move(why_without_memory));
  return memory;
}

void fill_deferred_storage(const c10::Storage& deferred, c10::Storage value) {
  if (value.use_count() > 1) value = copy_storage(value);
  c10::StorageImpl* impl = deferred.unsafeGetStorageImpl();
  c10::StorageImpl* from = value.unsafeGetStorageImpl();
  TORCH_INTERNAL_ASSERT(impl->device() == from->device());
  impl->set_nbytes(from->nbytes());
  impl->set_data_ptr_noswap(std::move(from->_mutable_data_ptr_no_checks()));
  allow_access(impl);
}

c10::Storage allocate_storage(std::size_t nbytes, c10::Device device) {
  return storage_of(nbytes, c10::GetAllocator(device.type())->allocate(nbytes));
}

c10::Storage copy_storage(const c10::Storage& storage, std::size_t min_nbytes) {
  c10::Storage copy = allocate_storage(std::max(storage.nbytes(), min_nbytes),
                                       storage.device());
  if (storage.nbytes() > 0) {
    copy.allocator()->copy_data(copy.mutable_data(), storage.data(),
                                storage.nbytes());
  }
  return copy;
}

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like) {
  const c10::DispatchKey key = c10::computeDispatchKey(
      like.scalar_type(), c10::Layout::Strided, storage.device());
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), like.dtype());
  c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(),
                              like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  if (like.is_conj()) impl->_set_conj(true);
  if (like.is_neg()) impl->_set_neg(true);
  return tensor;
}

void set_geometry(const at::Tensor& tensor, const at::Tensor& like) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
}

bool has_geometry(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.sizes() == like.sizes() && tensor.strides() == like.strides() &&
         tensor.storage_offset() == like.storage_offset();
}

}  // namespace nfold
