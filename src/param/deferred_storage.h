// File: deferred_storage.h
//
// Storages whose memory comes later. A tensor on one has its final device,
// dtype, sizes and strides, can be viewed, tied, registered and swapped, and
// costs some hundred bytes; only its elements are not there.
//
//   auto storage = nfold::make_deferred_storage(nbytes, device, "why");
//   auto tensor = nfold::tensor_on(storage, like);  // geometry of `like`
//   ...
//   nfold::fill_deferred_storage(storage, real);    // all views are real now
//
// Reading or writing the elements in between raises c10::Error with the given
// text; libtorch 2.11 cannot do that and hands out a null pointer. Not
// thread-safe.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <string>

namespace nfold {

c10::Storage make_deferred_storage(std::size_t nbytes, c10::Device device,
                                   std::string why_without_memory);

// Takes the memory out of a storage and returns it as a storage of its own.
c10::Storage defer_storage(const c10::Storage& storage,
                           std::string why_without_memory);

// Moves the memory of `value` into a deferred storage, or copies it if others
// hold `value` too. The number of bytes becomes that of `value`.
void fill_deferred_storage(const c10::Storage& deferred, c10::Storage value);

// With memory, uninitialised.
c10::Storage allocate_storage(std::size_t nbytes, c10::Device device);
// A copy, with room for at least this many bytes.
c10::Storage copy_storage(const c10::Storage& storage,
                          std::size_t min_nbytes = 0);

// A tensor with dtype, sizes, strides and offset of `like`, on another storage
// and its device. No autograd history.
at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like);

// Gives a tensor the sizes, strides and offset of another.
void set_geometry(const at::Tensor& tensor, const at::Tensor& like);
bool has_geometry(const at::Tensor& tensor, const at::Tensor& like);

}  // namespace nfold
