// File: released_storage.h
//
// Flat tensors whose memory comes and goes while views of them stay valid:
// deferred_storage.h for what is released again and again.
//
//   auto flat = make_released(numel, at::kFloat, "layer.weight is sharded");
//   auto view = flat.narrow(0, 0, 12);   // sizes, no memory
//   give_memory(flat);                   // uninitialised; view sees it too
//   take_memory(flat, "layer.weight is sharded");
//
// A tensor without memory keeps its sizes and the size of its storage, and
// version counters and aliases notice nothing of either change. Any access to
// its data raises c10::Error with the text.
//
// Not thread-safe for one tensor.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <string>

namespace nfold {

// [numel] on the CPU, without memory.
at::Tensor make_released(std::int64_t numel, at::ScalarType dtype,
                         const std::string& access_error);

// `flat` must cover its storage.
void give_memory(const at::Tensor& flat);
// Memory that is there already, at least as large as the storage of `flat`.
void lend_memory(const at::Tensor& flat, c10::DataPtr memory);
void take_memory(const at::Tensor& flat, const std::string& access_error);

}  // namespace nfold
