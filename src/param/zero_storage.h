// File: zero_storage.h
//
// A deferred storage as a factory gives it: all zeros, or with values that
// nobody relies on. Constructors like to fill such tensors through pointers, so
// for as long as no operator has written to it,
// - zeros are read from it through pointers, and
// - the first pointer that is asked for to write calls a hook, which gives the
//   storage memory or raises.
// Neither costs memory as long as nobody writes.
//
//   auto storage = nfold::make_zero_storage(nbytes, device, &on_write);
//   ...
//   auto zeros = nfold::seal_zero_storage(*storage, "why it has no memory");
//
// Not thread-safe.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <optional>
#include <string>

namespace nfold {

using WriteHook = void (*)(c10::StorageImpl*);

// Nothing where the device, the system or libtorch (before 2.13) has no way.
std::optional<c10::Storage> make_zero_storage(std::size_t nbytes,
                                              c10::Device device,
                                              WriteHook on_write);

// From now on the storage is like any other deferred one. Pointers from before
// stay valid as long as the result.
c10::Storage seal_zero_storage(const c10::Storage& storage,
                               std::string why_without_memory);

// For the hook: memory full of zeros.
void give_zeros(c10::StorageImpl* storage);

}  // namespace nfold
