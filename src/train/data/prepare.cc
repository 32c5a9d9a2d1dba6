#include "train/data/prepare.h"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "nfold/errors.h"
#include "train/data/bpe_trainer.h"
#include "train/data/corpus.h"
#include "train/data/token_file.h"
#include "train/data/tokenizer.h"
#include "train/files/mapped_file.h"
#include "train/files/output_file.h"

namespace nfold::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "nfold-data";
constexpr int kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";

void check(const PrepareOptions& options) {
  TORCH_CHECK_VALUE(!options.output.empty(), "--output: expected a folder");
  TORCH_CHECK_VALUE(options.val_fraction >= 0 && options.val_fraction <= 0.9,
                    "--val-fraction: expected 0 to 0.9 but found ",
                    options.val_fraction);
  TORCH_CHECK_VALUE(
      !options.tokenizer.empty() || (options.vocab_size >= 257 &&
                                     options.vocab_size <= kMaxTokenFileVocab),
      "--vocab-size: expected 257 to ", kMaxTokenFileVocab, " but found ",
      options.vocab_size);
}

// A folder beside the final one that disappears unless it is renamed.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& final_path)
      : final_path_(final_path), path_(final_path) {
    path_ += fmt::format(".tmp-{}", ::getpid());
    std::error_code error;
    fs::remove_all(path_, error);
    fs::create_directories(path_, error);
    NFOLD_CHECK_IO(!error, path_.string(),
                   ": could not create the folder: ", error.message());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  const fs::path& path() const { return path_; }

  // Replaces a folder that is missing or empty.
  void rename_to_final() {
    std::error_code error;
    fs::rename(path_, final_path_, error);
    NFOLD_CHECK_IO(
        !error, final_path_.string(),
        ": could not move the finished data there: ", error.message());
  }

 private:
  fs::path final_path_;
  fs::path path_;
};

struct Piece {
  fs::path path;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::vector<Piece> pieces_of(const Corpus& corpus, bool is_validation) {
  std::vector<Piece> pieces;
  for (const CorpusFile& file : corpus.files) {
    const std::int64_t begin = is_validation ? file.validation_begin : 0;
    const std::int64_t end =
        is_validation ? file.size_bytes : file.validation_begin;
    if (begin < end) pieces.push_back({file.path, begin, end});
  }
  return pieces;
}

// Calls `use` with the text of each piece and reports progress in bytes.
template <typename Use>
void for_each_text(const std::vector<Piece>& pieces,
                   const PrepareOptions& options, std::string_view what,
                   Use&& use) {
  std::int64_t total = 0;
  for (const Piece& piece : pieces) total += piece.end - piece.begin;
  std::int64_t done = 0;
  for (const Piece& piece : pieces) {
    const MappedFile file(piece.path);
    NFOLD_CHECK_IO(std::ssize(file.bytes()) >= piece.end, piece.path.string(),
                   ": the file changed while it was being read");
    use(file.bytes().substr(piece.begin, piece.end - piece.begin));
    done += piece.end - piece.begin;
    if (options.on_progress) options.on_progress(what, done, total);
  }
}

Tokenizer make_tokenizer(const Corpus& corpus, const PrepareOptions& options) {
  if (!options.tokenizer.empty()) {
    Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
    TORCH_CHECK_VALUE(tokenizer.vocab_size() <= kMaxTokenFileVocab,
                      options.tokenizer.string(), ": has ",
                      tokenizer.vocab_size(),
                      " tokens but a token file can hold ", kMaxTokenFileVocab);
    TORCH_CHECK_VALUE(tokenizer.end_of_text().has_value(),
                      options.tokenizer.string(), ": has no token ", kEndOfText,
                      ", which separates documents");
    return tokenizer;
  }
  BpeTrainer trainer;
  for_each_text(pieces_of(corpus, /*is_validation=*/false), options,
                "counting words",
                [&](std::string_view text) { trainer.add_text(text); });
  return trainer.train(
      {.vocab_size = options.vocab_size,
       .on_progress = [&](std::int64_t done, std::int64_t total) {
         if (options.on_progress) {
           options.on_progress("learning tokens", done, total);
         }
       }});
}

// Writes one token file; returns its line of the manifest.
Json write_tokens(const fs::path& path, const std::vector<Piece>& pieces,
                  const Tokenizer& tokenizer, const PrepareOptions& options,
                  std::string_view what) {
  TokenFileWriter writer(path);
  TextEncoder encoder(tokenizer);
  std::vector<TokenId> ids;
  for_each_text(pieces, options, what, [&](std::string_view text) {
    ids.assign(1, *tokenizer.end_of_text());
    encoder.encode_ordinary(text, &ids);
    writer.append(ids);
  });
  writer.close();
  return {{"tokens", writer.num_tokens()},
          {"documents", pieces.size()},
          {"hash", hash_of(MappedFile(path).bytes())}};
}

// What decides about the result: two runs with the same one write the same
// files.
Json recipe_of(const Corpus& corpus, const PrepareOptions& options) {
  Json files = Json::array();
  for (const CorpusFile& file : corpus.files) {
    files.push_back({{"name", file.name},
                     {"bytes", file.size_bytes},
                     {"hash", file.hash},
                     {"validation_begin", file.validation_begin}});
  }
  Json recipe = {{"format", kFormat},
                 {"version", kFormatVersion},
                 {"val_fraction", options.val_fraction}};
  if (options.tokenizer.empty()) {
    recipe["vocab_size_wanted"] = options.vocab_size;
  } else {
    recipe["tokenizer_given"] = hash_of(MappedFile(options.tokenizer).bytes());
  }
  recipe["corpus"] = {{"hash", corpus.hash},
                      {"bytes", corpus.size_bytes},
                      {"files", std::move(files)}};
  return recipe;
}

Json read_manifest(const fs::path& folder) {
  const fs::path path = folder / kManifest;
  Json manifest =
      Json::parse(MappedFile(path).bytes(), nullptr, /*exceptions=*/false);
  NFOLD_CHECK_IO(manifest.is_object() && manifest.contains("recipe") &&
                     manifest["recipe"].value("format", "") == kFormat,
                 path.string(),
                 ": expected the manifest that `nfold data prepare` writes");
  NFOLD_CHECK_IO(manifest["recipe"].value("version", 0) == kFormatVersion,
                 path.string(), ": expected version ", kFormatVersion,
                 " but found ", manifest["recipe"].value("version", 0),
                 "; prepare the data again");
  return manifest;
}

void check_hash(const fs::path& path, const std::string& expected) {
  const std::string found = hash_of(MappedFile(path).bytes());
  NFOLD_CHECK_IO(found == expected, path.string(), ": its hash is ", found,
                 " but the manifest beside it says ", expected,
                 "; the file has changed. Remove the folder and prepare the "
                 "data again");
}

// The result if the folder holds it already.
std::optional<PreparedData> find_result(const fs::path& folder,
                                        const Json& recipe) {
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) return std::nullopt;
  TORCH_CHECK_VALUE(fs::is_directory(folder, ignored), "--output ",
                    folder.string(), ": expected a folder but found a file");
  if (fs::is_empty(folder, ignored)) return std::nullopt;
  TORCH_CHECK_VALUE(is_prepared(folder), "--output ", folder.string(),
                    ": the folder holds other files; choose one that is new "
                    "or empty");
  const Json manifest = read_manifest(folder);
  const std::string hash = recipe["corpus"]["hash"].get<std::string>();
  const std::string found =
      manifest["recipe"].value(Json::json_pointer("/corpus/hash"), "unknown");
  TORCH_CHECK_VALUE(
      manifest["recipe"] == recipe, "--output ", folder.string(),
      ": the folder holds data made ",
      found == hash
          ? "with other options"
          : "from other text (corpus " + found + ", now " + hash + ")",
      "; choose another folder, or remove it if it is not needed");
  PreparedData data = open_prepared(folder);
  for (const char* file : {"train.bin", "val.bin", "tokenizer.json"}) {
    check_hash(folder / file, manifest["files"][file].value("hash", ""));
  }
  data.was_there = true;
  return data;
}

}  // namespace

bool is_prepared(const fs::path& folder) {
  std::error_code ignored;
  return fs::is_regular_file(folder / kManifest, ignored);
}

PreparedData open_prepared(const fs::path& folder) {
  const Json manifest = read_manifest(folder);
  PreparedData data{.folder = folder};
  try {
    const Json& files = manifest.at("files");
    const Json& corpus = manifest.at("recipe").at("corpus");
    data.vocab_size = manifest.at("vocab_size").get<std::int64_t>();
    data.num_train_tokens =
        files.at("train.bin").at("tokens").get<std::int64_t>();
    data.num_val_tokens = files.at("val.bin").at("tokens").get<std::int64_t>();
    data.num_files = std::ssize(corpus.at("files"));
    data.text_bytes = corpus.at("bytes").get<std::int64_t>();
    data.corpus_hash = corpus.at("hash").get<std::string>();
  } catch (const nlohmann::json::exception& error) {
    NFOLD_CHECK_IO(false, (folder / kManifest).string(),
                   ": the manifest is damaged: ", error.what());
  }
  const auto check_tokens = [](const fs::path& path, std::int64_t expected) {
    const std::int64_t found = TokenFile(path).num_tokens();
    NFOLD_CHECK_IO(found == expected, path.string(), ": has ", found,
                   " tokens but the manifest beside it says ", expected,
                   "; remove the folder and prepare the data again");
  };
  check_tokens(data.train_path(), data.num_train_tokens);
  check_tokens(data.val_path(), data.num_val_tokens);
  return data;
}

PreparedData prepare_data(const PrepareOptions& options) {
  check(options);
  // "data/" and "data" are one folder; the temporary one must lie beside it.
  const fs::path output =
      fs::absolute(options.output / "").lexically_normal().parent_path();
  Corpus corpus =
      find_corpus({.inputs = options.inputs, .extensions = options.extensions});
  split_corpus(options.val_fraction, &corpus);
  const Json recipe = recipe_of(corpus, options);
  if (auto result = find_result(output, recipe)) {
    result->folder = options.output;
    return *result;
  }
  TemporaryFolder folder(output);
  const Tokenizer tokenizer = make_tokenizer(corpus, options);
  const std::string tokenizer_json = tokenizer.to_json();
  write_file_atomically(folder.path() / "tokenizer.json", tokenizer_json);
  Json train =
      write_tokens(folder.path() / "train.bin", pieces_of(corpus, false),
                   tokenizer, options, "writing training tokens");
  Json val = write_tokens(folder.path() / "val.bin", pieces_of(corpus, true),
                          tokenizer, options, "writing validation tokens");
  Json manifest = {
      {"vocab_size", tokenizer.vocab_size()},
      {"inputs", options.inputs},
      {"extensions", options.extensions},
      {"files",
       {{"train.bin", std::move(train)},
        {"val.bin", std::move(val)},
        {"tokenizer.json", {{"hash", hash_of(tokenizer_json)}}}}},
      {"left_out",
       {{"binary", corpus.num_binary}, {"identical", corpus.num_identical}}}};
  for (const std::string& input : options.inputs) {
    if (input == kPythonStdlib) {
      manifest["python_version"] = find_python_stdlib().version;
    }
  }
  manifest["recipe"] = recipe;
  write_file_atomically(folder.path() / kManifest,
                        manifest.dump(1, ' ') + "\n");
  try {
    folder.rename_to_final();
  } catch (const IoError&) {
    // Another process may have prepared the same data meanwhile.
    if (auto result = find_result(output, recipe)) {
      result->folder = options.output;
      return *result;
    }
    throw;
  }
  return open_prepared(options.output);
}

}  // namespace nfold::train
