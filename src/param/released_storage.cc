#include "param/released_storage.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

namespace nfold {
namespace {

c10::StorageImpl& released_storage_impl(const at::Tensor& flat) {
  return *flat.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

at::DataPtr no_memory() { return {nullptr, at::Device(at::kCPU)}; }

}  // namespace

at::Tensor make_released(std::int64_t numel, at::ScalarType dtype,
                         const std::string& access_error) {
  const auto meta = c10::scalarTypeToTypeMeta(dtype);
  const auto num_bytes = static_cast<std::size_t>(numel) * meta.itemsize();
  c10::Storage storage(c10::Storage::use_byte_size_t(),
                       static_cast<std::int64_t>(num_bytes), no_memory(),
                       c10::GetAllocator(at::kCPU), /*resizable=*/false);
  auto flat = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), meta);
  flat.unsafeGetTensorImpl()->set_sizes_contiguous({numel});
  take_memory(flat, access_error);
  return flat;
}

void give_memory(const at::Tensor& flat) {
  auto& storage = released_storage_impl(flat);
  storage.clear_data_ptr_access_error_msg_();
  storage.set_data_ptr_noswap(
      c10::GetAllocator(at::kCPU)->allocate(storage.nbytes()));
}

void take_memory(const at::Tensor& flat, const std::string& access_error) {
  auto& storage = released_storage_impl(flat);
  storage.set_data_ptr_noswap(no_memory());
  storage.release_data_and_set_meta_custom_data_ptr_error_msg_(access_error);
}

}  // namespace nfold
