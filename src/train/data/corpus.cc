#include "train/data/corpus.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <numeric>
#include <set>
#include <string_view>

#include "nfold/errors.h"
#include "train/data/pre_tokenizer.h"
#include "train/files/mapped_file.h"

namespace nfold::train {
namespace {

namespace fs = std::filesystem;

// Of a text in another encoding or with some damage, more is text than not.
constexpr std::size_t kMostInvalidPercent = 10;
// Whether a file is text shows early.
constexpr std::size_t kProbedBytes = 256 * 1024;

struct FoundFile {
  fs::path path;
  std::string name;
};

bool is_hidden(const fs::path& path) {
  return path.filename().native().starts_with('.');
}

bool has_extension(const fs::path& path,
                   const std::vector<std::string>& extensions) {
  const std::string name = path.filename().native();
  return extensions.empty() ||
         std::any_of(extensions.begin(), extensions.end(),
                     [&](const std::string& e) { return name.ends_with(e); });
}

// Appends the files below the folder, sorted by path.
void walk(const fs::path& folder, const std::string& name,
          const std::vector<std::string>& extensions,
          const std::set<std::string>& skipped_folders,
          std::vector<FoundFile>* found) {
  std::vector<FoundFile> files;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  for (; !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    const fs::path& path = it->path();
    std::error_code ignored;  // a dangling link is neither
    if (it->is_directory(ignored)) {
      if (is_hidden(path) || skipped_folders.contains(path.filename())) {
        it.disable_recursion_pending();
      }
    } else if (it->is_regular_file(ignored) && !is_hidden(path) &&
               has_extension(path, extensions)) {
      files.push_back(
          {path, name + "/" + path.lexically_relative(folder).string()});
    }
  }
  NFOLD_CHECK_IO(!error, folder.string(),
                 ": could not search the folder: ", error.message());
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  found->insert(found->end(), files.begin(), files.end());
}

std::vector<FoundFile> find_files(const CorpusOptions& options) {
  std::vector<FoundFile> found;
  for (const std::string& input : options.inputs) {
    if (input == kPythonStdlib) {
      walk(find_python_stdlib().folder, kPythonStdlib, {".py"},
           {"site-packages", "dist-packages", "test", "tests", "idle_test",
            "__pycache__"},
           &found);
      continue;
    }
    const fs::path path = fs::path(input).lexically_normal();
    std::error_code ignored;
    // "notes/" and "." have no last part.
    const fs::path last = fs::weakly_canonical(path, ignored).filename();
    if (fs::is_directory(path, ignored)) {
      walk(path, last.string(), options.extensions, {"__pycache__"}, &found);
    } else if (fs::is_regular_file(path, ignored)) {
      found.push_back({path, last.string()});
    } else {
      TORCH_CHECK_VALUE(fs::exists(path, ignored), "--input ", input,
                        ": no such file or folder");
      TORCH_CHECK_VALUE(false, "--input ", input,
                        ": expected a file or a folder but found a device");
    }
  }
  return found;
}

std::string hex(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// The next start of a line at or behind `position`.
std::int64_t line_start(std::string_view text, std::int64_t position) {
  const std::size_t end = text.find('\n', static_cast<std::size_t>(position));
  return end == std::string_view::npos ? static_cast<std::int64_t>(text.size())
                                       : static_cast<std::int64_t>(end) + 1;
}

}  // namespace

std::string hash_of(std::string_view bytes) {
  return hex(XXH3_128bits(bytes.data(), bytes.size()));
}

bool is_text(std::string_view bytes) {
  bytes = bytes.substr(0, kProbedBytes);
  std::size_t num_invalid = 0;
  for (std::size_t i = 0; i < bytes.size();) {
    const Utf8Char c = first_char(bytes.substr(i));
    if (c.code_point == 0) return false;
    if (!c.is_valid) ++num_invalid;
    i += c.num_bytes;
  }
  return num_invalid * 100 <= bytes.size() * kMostInvalidPercent;
}

PythonStdlib find_python_stdlib() {
  constexpr const char* kCommand =
      "python3 -c 'import platform, sysconfig; "
      "print(platform.python_version()); "
      "print(sysconfig.get_paths()[\"stdlib\"])' 2>/dev/null";
  std::string output;
  int status = -1;
  if (FILE* pipe = ::popen(kCommand, "r")) {
    std::array<char, 1024> chunk{};
    while (std::fgets(chunk.data(), chunk.size(), pipe) != nullptr) {
      output += chunk.data();
    }
    status = ::pclose(pipe);
  }
  const std::size_t line_end = output.find('\n');
  NFOLD_CHECK_IO(status == 0 && line_end != std::string::npos, "--input ",
                 kPythonStdlib,
                 ": could not ask python3 for its standard library; install "
                 "python3 or name other inputs");
  PythonStdlib stdlib;
  stdlib.version = output.substr(0, line_end);
  std::string folder = output.substr(line_end + 1);
  while (folder.ends_with('\n')) folder.pop_back();
  stdlib.folder = folder;
  return stdlib;
}

Corpus find_corpus(const CorpusOptions& options) {
  TORCH_CHECK_VALUE(!options.inputs.empty(),
                    "--input: expected at least one file or folder");
  Corpus corpus;
  std::set<std::string> hashes;
  std::string all_hashes;
  const std::vector<FoundFile> found = find_files(options);
  for (const FoundFile& file : found) {
    const MappedFile mapped(file.path);
    const std::string_view bytes = mapped.bytes();
    if (bytes.empty()) continue;
    if (!is_text(bytes)) {
      ++corpus.num_binary;
      continue;
    }
    std::string hash = hash_of(bytes);
    if (!hashes.insert(hash).second) {
      ++corpus.num_identical;
      continue;
    }
    const auto size = static_cast<std::int64_t>(bytes.size());
    all_hashes += hash;
    corpus.size_bytes += size;
    corpus.files.push_back({.path = file.path,
                            .name = file.name,
                            .hash = std::move(hash),
                            .size_bytes = size,
                            .validation_begin = size});
  }
  TORCH_CHECK_VALUE(!corpus.files.empty(), "--input ",
                    fmt::format("{}", fmt::join(options.inputs, " ")),
                    ": found no text in ", found.size(), " files",
                    options.extensions.empty()
                        ? std::string()
                        : fmt::format(" that end in {}",
                                      fmt::join(options.extensions, " or ")),
                    " (", corpus.num_binary, " binary, the others empty)");
  corpus.hash = hash_of(all_hashes);
  return corpus;
}

void split_corpus(double fraction, Corpus* corpus) {
  TORCH_CHECK_VALUE(fraction >= 0 && fraction <= 0.9,
                    "--val-fraction: expected 0 to 0.9 but found ", fraction);
  std::vector<CorpusFile>& files = corpus->files;
  for (CorpusFile& file : files) file.validation_begin = file.size_bytes;
  const auto wanted = static_cast<std::int64_t>(
      fraction * static_cast<double>(corpus->size_bytes));
  std::vector<std::size_t> by_hash(files.size());
  std::iota(by_hash.begin(), by_hash.end(), 0);
  std::sort(by_hash.begin(), by_hash.end(), [&](std::size_t a, std::size_t b) {
    return files[a].hash < files[b].hash;
  });
  std::int64_t missing = wanted;
  for (const std::size_t i : by_hash) {
    if (files[i].size_bytes > missing) continue;
    files[i].validation_begin = 0;
    missing -= files[i].size_bytes;
  }
  if (missing <= wanted / 2) return;
  // Few or large files. The largest is none of those taken: it holds more
  // than the average, and what is missing is more than a small file.
  const auto largest = std::max_element(
      files.begin(), files.end(), [](const auto& a, const auto& b) {
        return (a.validation_begin == 0 ? 0 : a.size_bytes) <
               (b.validation_begin == 0 ? 0 : b.size_bytes);
      });
  const MappedFile mapped(largest->path);
  largest->validation_begin =
      line_start(mapped.bytes(), largest->size_bytes - missing);
  if (largest->validation_begin == largest->size_bytes) {  // one long line
    largest->validation_begin = largest->size_bytes - missing;
  }
}

}  // namespace nfold::train
