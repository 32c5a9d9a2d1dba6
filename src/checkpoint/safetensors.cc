#include <ATen/Functions.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <system_error>

#include "checkpoint/atomic_file.h"
#include "checkpoint/safetensors_header.h"
#include "nfold/checkpoint.h"
#include "nfold/errors.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "safetensors files are little-endian");

namespace nfold {
namespace {

constexpr std::size_t kLengthBytes = 8;

// A whole file in memory, copy-on-write.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    NFOLD_CHECK_IO(descriptor >= 0, path, ": cannot be read (",
                   error_text(errno), ").");
    struct stat status {};
    const bool is_file =
        ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    if (is_file && status.st_size > 0) {
      num_bytes_ = static_cast<std::size_t>(status.st_size);
      data_ = ::mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                     descriptor, 0);
    }
    const int error = errno;
    ::close(descriptor);
    NFOLD_CHECK_IO(is_file, path, ": is not a regular file.");
    NFOLD_CHECK_IO(data_ != MAP_FAILED, path, ": cannot be mapped (",
                   error_text(error), ").");
  }
  ~Mapping() {
    if (num_bytes_ > 0 && data_ != MAP_FAILED) ::munmap(data_, num_bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

at::Tensor tensor_at(const SafetensorsEntry& entry, char* data,
                     const std::shared_ptr<Mapping>& mapping,
                     const std::string& path) {
  const auto num_bytes =
      static_cast<std::size_t>(entry.end_bytes - entry.begin_bytes);
  const auto options = at::TensorOptions(entry.dtype);
  if (num_bytes == 0) return at::empty(entry.shape, options);
  if (entry.dtype == at::kBool) {
    const bool is_valid = std::all_of(data, data + num_bytes, [](char byte) {
      return byte == 0 || byte == 1;
    });
    NFOLD_CHECK_IO(is_valid, path, ": tensor \"", entry.name,
                   "\" is BOOL but holds bytes other than 0 and 1.");
  }
  // Writers align the data, but the format does not ask them to.
  const auto alignment = c10::elementSize(entry.dtype);
  if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data, num_bytes);
    return copy;
  }
  return at::from_blob(data, entry.shape, [mapping](void*) {}, options);
}

}  // namespace

at::Tensor SafetensorsContent::find(const std::string& name) const {
  for (const auto& [known, tensor] : tensors) {
    if (known == name) return tensor;
  }
  return {};
}

SafetensorsContent load_safetensors(const std::string& path) {
  auto mapping = std::make_shared<Mapping>(path);
  NFOLD_CHECK_IO(mapping->num_bytes() >= kLengthBytes, path, ": has only ",
                 mapping->num_bytes(),
                 " bytes; a safetensors file begins with an 8-byte length.");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping->data(), kLengthBytes);
  NFOLD_CHECK_IO(header_bytes <= SafetensorsHeader::kMaxBytes, path,
                 ": the header claims ", header_bytes, " bytes; at most ",
                 SafetensorsHeader::kMaxBytes,
                 " are allowed. This is not a safetensors file, or it is "
                 "damaged.");
  const std::size_t rest_bytes = mapping->num_bytes() - kLengthBytes;
  NFOLD_CHECK_IO(header_bytes <= rest_bytes, path, ": the header claims ",
                 header_bytes, " bytes, but only ", rest_bytes,
                 " follow. The file is truncated; fetch or save it again.");
  char* data = mapping->data() + kLengthBytes + header_bytes;
  SafetensorsHeader header = SafetensorsHeader::parse(
      {mapping->data() + kLengthBytes, header_bytes},
      static_cast<std::int64_t>(rest_bytes - header_bytes), path);
  SafetensorsContent result;
  result.metadata = std::move(header.metadata);
  for (const SafetensorsEntry& entry : header.entries) {
    result.tensors.emplace_back(
        entry.name, tensor_at(entry, data + entry.begin_bytes, mapping, path));
  }
  return result;
}

void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::set<std::string> names;
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(name != "__metadata__" && names.insert(name).second, path,
                      ": the name \"", name,
                      "\" is reserved or stands twice; every tensor needs "
                      "its own.");
    TORCH_CHECK_VALUE(tensor.defined(), path, ": tensor \"", name,
                      "\" is undefined.");
    TORCH_CHECK_VALUE(safetensors_name_of(tensor.scalar_type()) != nullptr,
                      path, ": tensor \"", name, "\" has dtype ",
                      tensor.scalar_type(),
                      ", which the safetensors format lacks; convert it.");
  }
  // Wide elements first, so that all data is aligned; then by name, as other
  // writers do.
  std::vector<const NamedTensors::value_type*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(b->second.element_size(), a->first) <
           std::pair(a->second.element_size(), b->first);
  });
  SafetensorsHeader header;
  header.metadata = metadata;
  std::int64_t offset_bytes = 0;
  for (const auto* item : order) {
    const at::Tensor& tensor = item->second;
    const std::int64_t begin_bytes = offset_bytes;
    offset_bytes += static_cast<std::int64_t>(tensor.nbytes());
    header.entries.push_back({item->first, tensor.scalar_type(),
                              tensor.sizes().vec(), begin_bytes, offset_bytes});
  }
  const std::string json = header.to_json();
  TORCH_CHECK_VALUE(json.size() <= SafetensorsHeader::kMaxBytes, path,
                    ": names and metadata take ", json.size(),
                    " bytes, but readers of the format refuse more than ",
                    SafetensorsHeader::kMaxBytes, ".");
  AtomicFile file(path);
  const std::uint64_t header_bytes = json.size();
  file.write(&header_bytes, kLengthBytes);
  file.write(json.data(), json.size());
  for (const auto* item : order) {
    // One at a time, so that copies never add up to the whole model.
    const at::Tensor data = item->second.detach().cpu().contiguous();
    if (data.nbytes() > 0) file.write(data.const_data_ptr(), data.nbytes());
  }
  file.commit();
}

}  // namespace nfold
