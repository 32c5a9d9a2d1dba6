#include "train/data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "train/data/corpus.h"
#include "train/data/token_file.h"
#include "train/data/tokenizer.h"
#include "train/files/mapped_file.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string lines(const std::string& word, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += word + " line " + std::to_string(i) + "\n";
  }
  return text;
}

class PrepareTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) {
      write(source_ / (std::string(name) + ".txt"), lines(name, 40));
    }
    write(source_ / "deep" / "er" / "code.py", lines("def f", 40));
    options_ = {.inputs = {source_.string()},
                .output = folder_ / "out",
                .vocab_size = 300,
                .val_fraction = 0.25};
  }

  std::vector<std::string> names(const CorpusOptions& options) {
    std::vector<std::string> names;
    for (const CorpusFile& file : find_corpus(options).files) {
      names.push_back(file.name);
    }
    return names;
  }

  std::set<std::string> files_in(const fs::path& path) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) {
      names.insert(entry.path().filename());
    }
    return names;
  }

  std::vector<std::string> documents(const fs::path& path,
                                     const Tokenizer& tokenizer) {
    const TokenFile file(path);
    std::vector<std::int64_t> ids(file.num_tokens());
    file.read(0, ids, tokenizer.vocab_size());
    std::vector<std::string> documents;
    for (const std::int64_t id : ids) {
      if (id == tokenizer.end_of_text()) {
        documents.emplace_back();
      } else {
        const auto token = static_cast<TokenId>(id);
        documents.back() += tokenizer.decode({&token, 1});
      }
    }
    return documents;
  }

  TestFolder folder_;
  fs::path source_ = folder_ / "source";
  PrepareOptions options_;
};

TEST_F(PrepareTest, FindsTextInOrderWithoutRubbish) {
  write(source_ / "binary.o", std::string("\x7f"
                                          "ELF\0\1",
                                          6));
  write(source_ / "noise", "\xff\xfe\xfd\xfc\xfb");
  write(source_ / "empty.txt", "");
  write(source_ / "copy_of_a.txt", lines("a", 40));
  write(source_ / ".git" / "config", "hidden");
  write(source_ / ".hidden", "hidden too");
  write(source_ / "__pycache__" / "x.py", "cached");
  fs::create_directory_symlink(source_, source_ / "loop");
  fs::create_symlink(source_ / "nowhere", source_ / "dangling");
  const Corpus corpus = find_corpus({.inputs = {source_.string()}});
  std::vector<std::string> names;
  for (const CorpusFile& file : corpus.files) names.push_back(file.name);
  EXPECT_THAT(names, ElementsAre("source/a.txt", "source/b.txt", "source/c.txt",
                                 "source/d.txt", "source/deep/er/code.py",
                                 "source/e.txt", "source/f.txt", "source/g.txt",
                                 "source/h.txt"));
  EXPECT_EQ(corpus.num_binary, 2);
  EXPECT_EQ(corpus.num_identical, 1);
}

TEST_F(PrepareTest, TakesOnlyFilesWithExtensionFromFolders) {
  EXPECT_THAT(names({.inputs = {source_.string()}, .extensions = {".py"}}),
              ElementsAre("source/deep/er/code.py"));
  EXPECT_THAT(names({.inputs = {(source_ / "b.txt").string(),
                                (source_ / "deep/").string()},
                     .extensions = {".py"}}),
              ElementsAre("b.txt", "deep/er/code.py"));
}

TEST_F(PrepareTest, Latin1IsText) {
  EXPECT_TRUE(
      is_text("stra\xdf"
              "e und gr\xf6\xdf"
              "e, sonst aber nur Text"));
  EXPECT_FALSE(is_text(std::string("a\0b", 3)));
}

TEST_F(PrepareTest, WritesTokensOfEveryDocument) {
  const PreparedData data = prepare_data(options_);
  EXPECT_FALSE(data.was_there);
  EXPECT_EQ(data.num_files, 9);
  EXPECT_EQ(data.vocab_size, 300);
  EXPECT_THAT(
      files_in(data.folder),
      ElementsAre("manifest.json", "tokenizer.json", "train.bin", "val.bin"));
  EXPECT_THAT(files_in(folder_.path()), ElementsAre("out", "source"));
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  const auto train = documents(data.train_path(), tokenizer);
  const auto val = documents(data.val_path(), tokenizer);
  std::multiset<std::string> found(train.begin(), train.end());
  found.insert(val.begin(), val.end());
  std::multiset<std::string> expected;
  for (const CorpusFile& file :
       find_corpus({.inputs = {source_.string()}}).files) {
    expected.insert(read_file(file.path));
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(val.size(), 2U);
}

TEST_F(PrepareTest, SameInputsGiveSameFiles) {
  const PreparedData a = prepare_data(options_);
  options_.output = folder_ / "again/";
  const PreparedData b = prepare_data(options_);
  for (const char* file :
       {"train.bin", "val.bin", "tokenizer.json", "manifest.json"}) {
    EXPECT_EQ(read_file(a.folder / file), read_file(b.folder / file)) << file;
  }
}

TEST_F(PrepareTest, DoesNothingWhenResultIsThere) {
  const PreparedData first = prepare_data(options_);
  const auto time = fs::last_write_time(first.train_path());
  int num_calls = 0;
  options_.on_progress = [&](auto...) { ++num_calls; };
  const PreparedData second = prepare_data(options_);
  EXPECT_TRUE(second.was_there);
  EXPECT_EQ(num_calls, 0);
  EXPECT_EQ(fs::last_write_time(first.train_path()), time);
  EXPECT_EQ(second.num_train_tokens, first.num_train_tokens);
  EXPECT_EQ(second.corpus_hash, first.corpus_hash);
}

TEST_F(PrepareTest, NeverOverwritesSomethingElse) {
  prepare_data(options_);
  const std::string before = read_file(options_.output / "train.bin");
  const auto expect_refused = [&](const PrepareOptions& options,
                                  const char* why) {
    EXPECT_THAT(text_of<c10::ValueError>([&] { prepare_data(options); }),
                HasSubstr(why));
    EXPECT_EQ(read_file(options_.output / "train.bin"), before);
  };
  PrepareOptions other = options_;
  other.vocab_size = 310;
  expect_refused(other, "other options");
  other = options_;
  other.val_fraction = 0.5;
  expect_refused(other, "other options");
  write(source_ / "a.txt", "changed");
  expect_refused(options_, "other text");
  write(folder_ / "full" / "thesis.doc", "years of work");
  other = options_;
  other.output = folder_ / "full";
  expect_refused(other, "holds other files");
  other.output = folder_ / "full" / "thesis.doc";
  expect_refused(other, "found a file");
}

TEST_F(PrepareTest, NoticesThatAResultWasDamaged) {
  const PreparedData data = prepare_data(options_);
  const auto size = fs::file_size(data.train_path());
  {
    std::fstream file(data.train_path(),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(1500);
    file.put(1);
    file.put(1);
  }
  EXPECT_THAT(text_of<IoError>([&] { prepare_data(options_); }),
              AllOf(HasSubstr("train.bin"), HasSubstr("has changed")));
  fs::resize_file(data.train_path(), size - 2);
  EXPECT_THAT(text_of<IoError>([&] { open_prepared(data.folder); }),
              HasSubstr("truncated"));
  write(data.folder / "manifest.json", "{");
  EXPECT_THAT(text_of<IoError>([&] { open_prepared(data.folder); }),
              HasSubstr("manifest.json"));
  write(data.folder / "manifest.json",
        R"({"recipe": {"format": "nfold-data", "version": 1}})");
  EXPECT_THAT(text_of<IoError>([&] { open_prepared(data.folder); }),
              HasSubstr("damaged"));
  write(data.folder / "manifest.json",
        R"({"recipe": {"format": "nfold-data", "version": 99}})");
  EXPECT_THAT(text_of<IoError>([&] { open_prepared(data.folder); }),
              HasSubstr("found 99"));
}

TEST_F(PrepareTest, OneFileIsCutAtALine) {
  options_.inputs = {(source_ / "a.txt").string()};
  const PreparedData data = prepare_data(options_);
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  const auto train = documents(data.train_path(), tokenizer);
  const auto val = documents(data.val_path(), tokenizer);
  ASSERT_EQ(train.size(), 1U);
  ASSERT_EQ(val.size(), 1U);
  EXPECT_EQ(train[0] + val[0], lines("a", 40));
  EXPECT_TRUE(train[0].ends_with('\n'));
  EXPECT_NEAR(static_cast<double>(val[0].size()) / lines("a", 40).size(), 0.25,
              0.05);
}

TEST_F(PrepareTest, SplitKeepsCloseToFraction) {
  for (const double fraction : {0.0, 0.1, 0.3, 0.5, 0.9}) {
    Corpus corpus = find_corpus({.inputs = {source_.string()}});
    split_corpus(fraction, &corpus);
    std::int64_t val = 0;
    for (const CorpusFile& file : corpus.files) {
      val += file.size_bytes - file.validation_begin;
    }
    const double found = static_cast<double>(val) / corpus.size_bytes;
    EXPECT_LE(found, fraction + 0.001);
    EXPECT_GE(found, fraction / 2 - 0.02);
  }
}

TEST_F(PrepareTest, OneLongLineIsCutToo) {
  write(folder_ / "line.txt", std::string(1000, 'x'));
  Corpus corpus = find_corpus({.inputs = {(folder_ / "line.txt").string()}});
  split_corpus(0.1, &corpus);
  EXPECT_EQ(corpus.files[0].validation_begin, 900);
}

TEST_F(PrepareTest, FractionZeroLeavesNoValidationText) {
  options_.val_fraction = 0;
  const PreparedData data = prepare_data(options_);
  EXPECT_EQ(data.num_val_tokens, 0);
  EXPECT_EQ(TokenFile(data.val_path()).num_tokens(), 0);
}

TEST_F(PrepareTest, UsesGivenTokenizer) {
  const PreparedData first = prepare_data(options_);
  PrepareOptions other = options_;
  other.output = folder_ / "other";
  other.inputs = {(source_ / "deep").string()};
  other.tokenizer = first.tokenizer_path();
  const PreparedData second = prepare_data(other);
  EXPECT_EQ(read_file(second.tokenizer_path()),
            read_file(first.tokenizer_path()));
  EXPECT_TRUE(prepare_data(other).was_there);
}

TEST_F(PrepareTest, NamesBadOptions) {
  const auto expect_error = [&](auto change, const char* what) {
    PrepareOptions options = options_;
    change(options);
    EXPECT_THAT(text_of<c10::ValueError>([&] { prepare_data(options); }),
                HasSubstr(what));
    EXPECT_FALSE(fs::exists(options_.output));
  };
  expect_error([](auto& o) { o.inputs.clear(); }, "--input");
  expect_error([](auto& o) { o.inputs = {"missing"}; }, "--input missing");
  expect_error([](auto& o) { o.inputs = {"/dev/null"}; }, "device");
  expect_error([](auto& o) { o.extensions = {".xyz"}; }, "end in .xyz");
  expect_error([](auto& o) { o.vocab_size = 256; }, "found 256");
  expect_error([](auto& o) { o.vocab_size = 65537; }, "found 65537");
  expect_error([](auto& o) { o.val_fraction = 1; }, "--val-fraction");
  expect_error([](auto& o) { o.val_fraction = -0.1; }, "--val-fraction");
  expect_error([](auto& o) { o.output.clear(); }, "--output");
  options_.tokenizer = folder_ / "missing.json";
  EXPECT_THROW(prepare_data(options_), IoError);
}

TEST_F(PrepareTest, FailureLeavesNothingBehind) {
  // A limit on file sizes stands for a disk that fills up.
  write(source_ / "big.txt", lines("big", 20000));
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  struct rlimit small = old;
  small.rlim_cur = 64 * 1024;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string text;
  try {
    prepare_data(options_);
  } catch (const IoError& error) {
    text = message_of(error);
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(text, AllOf(HasSubstr("train.bin"), HasSubstr("File too large")));
  EXPECT_THAT(files_in(folder_.path()), ElementsAre("source"));
}

TEST_F(PrepareTest, ReportsProgress) {
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> last;
  options_.on_progress = [&](std::string_view what, std::int64_t done,
                             std::int64_t total) {
    last[std::string(what)] = {done, total};
  };
  prepare_data(options_);
  for (const char* what : {"counting words", "writing training tokens",
                           "writing validation tokens"}) {
    EXPECT_GT(last[what].first, 0) << what;
    EXPECT_EQ(last[what].first, last[what].second) << what;
  }
}

TEST_F(PrepareTest, FindsThePythonStandardLibrary) {
  const Corpus corpus = find_corpus({.inputs = {kPythonStdlib}});
  EXPECT_GT(corpus.files.size(), 400U);
  EXPECT_GT(corpus.size_bytes, 5'000'000);
  for (const CorpusFile& file : corpus.files) {
    EXPECT_TRUE(file.name.starts_with("python-stdlib/")) << file.name;
    EXPECT_TRUE(file.name.ends_with(".py")) << file.name;
    EXPECT_EQ(file.name.find("/test/"), std::string::npos) << file.name;
    EXPECT_EQ(file.name.find("site-packages"), std::string::npos) << file.name;
  }
}

}  // namespace
}  // namespace nfold::train
