// File: corpus.h
//
// Finds the text files that a data set is made of and divides them into
// training and validation text.
//
//   Corpus corpus = find_corpus({.inputs = {"src", "notes.txt"}});
//   split_corpus(0.1, &corpus);
//
// Files are sorted by name; links to folders are not followed; hidden files
// and folders, binary files, empty files and copies of the same bytes are left
// out. Everything depends on names and contents only, not on dates or on the
// order in which the file system lists them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace nfold::train {

// As an input: the sources of python3's standard library without its tests,
// some 12 MB of text that nearly every machine has.
inline constexpr const char* kPythonStdlib = "python-stdlib";

struct CorpusOptions {
  // Files, folders or kPythonStdlib. A folder is searched with all below it.
  std::vector<std::string> inputs = {};
  // Of the files to take from folders, such as ".py"; empty: every text file.
  // Files named in `inputs` are always taken.
  std::vector<std::string> extensions = {};
};

struct CorpusFile {
  std::filesystem::path path;
  std::string name;  // the input's last part and the path below it
  std::string hash;  // XXH3-128 of the content, hexadecimal
  std::int64_t size_bytes = 0;
  // Where validation text begins: 0 if all of it is, size_bytes if none.
  std::int64_t validation_begin = 0;
};

struct Corpus {
  std::vector<CorpusFile> files;  // by order of inputs, then by name
  std::string hash;               // of all contents, in this order
  std::int64_t size_bytes = 0;
  std::int64_t num_binary = 0;     // left out
  std::int64_t num_identical = 0;  // left out
};

// Raises c10::ValueError for an input that does not exist or when no text is
// found, IoError for a file that cannot be read.
Corpus find_corpus(const CorpusOptions& options);

// Sets validation_begin of every file so that about `fraction` (0 to 0.9) of
// the bytes are validation text: whole files in the order of their hashes,
// and where whole files are too large, the end of the largest one, from a
// start of a line.
void split_corpus(double fraction, Corpus* corpus);

// Hexadecimal XXH3-128.
std::string hash_of(std::string_view bytes);

// Whether the bytes look like text: no NUL, and nearly all of it UTF-8.
bool is_text(std::string_view bytes);

// "3.11.7" and the folder of python3's standard library. Raises IoError if
// there is no python3.
struct PythonStdlib {
  std::string version;
  std::filesystem::path folder;
};
PythonStdlib find_python_stdlib();

}  // namespace nfold::train
