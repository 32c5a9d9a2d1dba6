// File: text_table.h
//
// Aligned columns for reports on a terminal.
//
//   TextTable table({"", "per rank", "one process"});
//   table.add_row({"parameters", bytes_text(a), bytes_text(b)});
//   std::cout << table.text();
//
//                 per rank  one process
//   ----------  ----------  -----------
//   parameters    40.5 MiB     40.5 MiB
//
// The first column is aligned left, the others right. Not thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace nfold::train {

class TextTable {
 public:
  explicit TextTable(std::vector<std::string> headers);

  // One cell for each header. Raises c10::ValueError otherwise.
  void add_row(std::vector<std::string> cells);
  // A line between what is above and below, as before a sum.
  void add_line();

  // The table with a newline behind each row, no trailing blanks.
  std::string text() const;

 private:
  std::vector<std::string> headers_;
  std::vector<std::vector<std::string>> rows_;  // an empty one is a line
};

// Columns that the text takes on a terminal: combining marks take none, East
// Asian wide characters and emoji two.
std::size_t width_of(std::string_view text);

// The longest beginning of the text that takes at most `width` columns.
std::string_view fit_to_width(std::string_view text, std::size_t width);

}  // namespace nfold::train
