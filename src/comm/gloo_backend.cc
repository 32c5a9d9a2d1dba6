#include "comm/gloo_backend.h"

#include <net/if.h>

// Tells torch's header that the library was built with gloo.
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "nfold/errors.h"

namespace nfold {
namespace {

// [Note: Gloo headers]
// torch exports its Gloo process group but does not ship the gloo headers that
// the declaration includes; those of the system are older than the library.
// So this is the only file that includes them, and it passes gloo's own types
// between exported functions without ever looking inside.
std::shared_ptr<::gloo::transport::Device> make_device(
    const std::string& interface_hint) {
  using c10d::ProcessGroupGloo;
  if (interface_hint.empty()) return ProcessGroupGloo::createDefaultDevice();
  if (if_nametoindex(interface_hint.c_str()) != 0) {
    return ProcessGroupGloo::createDeviceForInterface(interface_hint);
  }
  return ProcessGroupGloo::createDeviceForHostname(interface_hint);
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(
    c10::intrusive_ptr<c10d::Store> store, int rank, int size,
    std::chrono::milliseconds timeout, const std::string& interface_hint) {
  if (size == 1) return nullptr;
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(make_device(interface_hint));
    // Serves collectives of the backend's own, which nfold does not use.
    options->threads = 1;
    return c10::make_intrusive<c10d::ProcessGroupGloo>(
        std::move(store), rank, size, std::move(options));
  } catch (const std::exception& error) {
    C10_THROW_ERROR(
        DistBackendError,
        c10::str("[rank ", rank, " of ", size,
                 "] could not connect to the other ranks over ",
                 interface_hint.empty() ? "the address of this host's name"
                                        : "'" + interface_hint + "'",
                 " within ", timeout.count() / 1000.0,
                 " s: ", message_of(error),
                 ". Check that all ranks are running and can reach each "
                 "other on that interface"));
  }
}

}  // namespace nfold
