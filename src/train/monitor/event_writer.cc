#include "train/monitor/event_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstring>

namespace nfold::train {
namespace {

static_assert(std::endian::native == std::endian::little,
              "event files are little-endian");

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  constexpr std::uint32_t kReversedPolynomial = 0x82F63B78U;
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc & 1U) != 0 ? (crc >> 1) ^ kReversedPolynomial : crc >> 1;
    }
    table[i] = crc;
  }
  return table;
}

constexpr auto kCrcTable = make_crc_table();

double now_seconds() {
  return std::chrono::duration<double>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::filesystem::path new_path(const std::filesystem::path& folder) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  return folder / fmt::format("events.out.tfevents.{:.0f}.{}.{}", now_seconds(),
                              host.data(), ::getpid());
}

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// Protobuf: a field is (number << 3 | wire type), then its value.
enum class WireType : std::uint8_t { kVarint, kFixed64, kBytes, kFixed32 = 5 };

std::string varint(std::uint64_t value) {
  std::string bytes;
  while (value >= 0x80) {
    bytes.push_back(static_cast<char>((value & 0x7F) | 0x80));
    value >>= 7;
  }
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::string key(std::uint32_t field, WireType type) {
  return varint((field << 3) | static_cast<std::uint32_t>(type));
}

std::string bytes_field(std::uint32_t field, std::string_view bytes) {
  std::string text = key(field, WireType::kBytes) + varint(bytes.size());
  return text.append(bytes);
}

// message Event { double wall_time = 1; int64 step = 2;
//                 string file_version = 3; Summary summary = 5; }
std::string event_of(double wall_time, std::int64_t step) {
  return key(1, WireType::kFixed64) + raw(wall_time) +
         key(2, WireType::kVarint) + varint(static_cast<std::uint64_t>(step));
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) {
    crc =
        kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFF] ^ (crc >> 8);
  }
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8U;
}

EventWriter::EventWriter(const std::filesystem::path& folder)
    : file_(new_path(folder)) {
  write_record(event_of(now_seconds(), 0) + bytes_field(3, "brain.Event:2"));
  flush();
}

void EventWriter::add_scalar(std::string_view tag, double value,
                             std::int64_t step,
                             std::optional<double> wall_time) {
  // message Summary { repeated Value value = 1; }
  // message Value { string tag = 1; float simple_value = 2; }
  const std::string scalar = bytes_field(1, tag) + key(2, WireType::kFixed32) +
                             raw(static_cast<float>(value));
  write_record(event_of(wall_time.value_or(now_seconds()), step) +
               bytes_field(5, bytes_field(1, scalar)));
}

void EventWriter::flush() { file_.flush(); }

void EventWriter::write_record(std::string_view event) {
  const std::string length = raw(static_cast<std::uint64_t>(event.size()));
  file_.write(length);
  file_.write(raw(masked_crc32c(length)));
  file_.write(event);
  file_.write(raw(masked_crc32c(event)));
}

void write_step_events(const StepMetrics& metrics, EventWriter* writer) {
  const StepReport& report = metrics.report;
  const auto add = [&](const char* tag, double value) {
    writer->add_scalar(tag, value, metrics.samples);
  };
  add("Train/Samples/train_loss", metrics.loss);
  add("Train/Samples/lr", report.lr);
  add("Train/Samples/loss_scale", report.loss_scale);
  add("Train/Samples/grad_norm", report.grad_norm);
  add("Train/Samples/tokens_per_second", metrics.tokens_per_second);
  add("Train/Samples/elapsed_time_ms_forward", report.forward_ms);
  add("Train/Samples/elapsed_time_ms_backward", report.backward_ms);
  add("Train/Samples/elapsed_time_ms_backward_allreduce", report.comm_wait_ms);
  add("Train/Samples/elapsed_time_ms_step", report.optimizer_ms);
  if (metrics.mixture) {
    add("Train/Samples/aux_loss", metrics.mixture->aux_loss);
    add("Train/Samples/dropped_share", metrics.mixture->dropped_share);
  }
  if (metrics.val_loss) add("Validation/Samples/loss", *metrics.val_loss);
  writer->flush();
}

}  // namespace nfold::train
