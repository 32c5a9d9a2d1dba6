#include "param/released_storage.h"

#include <ATen/ATen.h>

#include "param/deferred_storage.h"

namespace nfold {

at::Tensor make_released(std::int64_t numel, at::ScalarType dtype,
                         const std::string& access_error) {
  const auto like =
      at::empty({numel}, at::TensorOptions(dtype).device(at::kMeta));
  return tensor_on(make_deferred_storage(like.nbytes(), at::kCPU, access_error),
                   like);
}

void give_memory(const at::Tensor& flat) {
  const auto& storage = flat.storage();
  fill_deferred_storage(storage,
                        allocate_storage(storage.nbytes(), storage.device()));
}

void lend_memory(const at::Tensor& flat, c10::DataPtr memory) {
  const auto& storage = flat.storage();
  fill_deferred_storage(
      storage, c10::Storage(c10::Storage::use_byte_size_t{}, storage.nbytes(),
                            std::move(memory)));
}

void take_memory(const at::Tensor& flat, const std::string& access_error) {
  defer_storage(flat.storage(), access_error);
}

}  // namespace nfold
