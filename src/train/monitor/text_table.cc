#include "train/monitor/text_table.h"

#include <algorithm>
#include <utility>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

constexpr std::size_t kGap = 2;

struct Character {
  char32_t code_point = 0;
  std::size_t num_bytes = 1;
};

// Lenient: what is shown comes from the program itself.
Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  std::size_t num_bytes = 1;
  char32_t code_point = lead;
  if (lead >= 0xF0) {
    num_bytes = 4, code_point = lead & 0x07;
  } else if (lead >= 0xE0) {
    num_bytes = 3, code_point = lead & 0x0F;
  } else if (lead >= 0xC0) {
    num_bytes = 2, code_point = lead & 0x1F;
  }
  num_bytes = std::min(num_bytes, text.size());
  for (std::size_t i = 1; i < num_bytes; ++i) {
    code_point =
        (code_point << 6) | (static_cast<unsigned char>(text[i]) & 0x3F);
  }
  return {code_point, num_bytes};
}

std::size_t columns_of(char32_t c) {
  const auto is_in = [c](char32_t first, char32_t last) {
    return c >= first && c <= last;
  };
  if (is_in(0x300, 0x36F) || is_in(0x200B, 0x200F) || is_in(0xFE00, 0xFE0F)) {
    return 0;
  }
  const bool is_wide = is_in(0x1100, 0x115F) || is_in(0x2E80, 0xA4CF) ||
                       is_in(0xAC00, 0xD7A3) || is_in(0xF900, 0xFAFF) ||
                       is_in(0xFF00, 0xFF60) || is_in(0x1F300, 0x1FAFF) ||
                       is_in(0x20000, 0x3FFFD);
  return is_wide ? 2 : 1;
}

}  // namespace

std::size_t width_of(std::string_view text) {
  std::size_t width = 0;
  while (!text.empty()) {
    const Character c = first_character(text);
    width += columns_of(c.code_point);
    text.remove_prefix(c.num_bytes);
  }
  return width;
}

std::string_view fit_to_width(std::string_view text, std::size_t width) {
  std::size_t used = 0;
  std::size_t end = 0;
  while (end < text.size()) {
    const Character c = first_character(text.substr(end));
    used += columns_of(c.code_point);
    if (used > width) break;
    end += c.num_bytes;
  }
  return text.substr(0, end);
}

TextTable::TextTable(std::vector<std::string> headers)
    : headers_(std::move(headers)) {
  TORCH_CHECK_VALUE(!headers_.empty(), "TextTable: expected a column");
}

void TextTable::add_row(std::vector<std::string> cells) {
  TORCH_CHECK_VALUE(cells.size() == headers_.size(), "TextTable: expected ",
                    headers_.size(), " cells but found ", cells.size());
  rows_.push_back(std::move(cells));
}

void TextTable::add_line() { rows_.emplace_back(); }

std::string TextTable::text() const {
  std::vector<std::size_t> widths;
  for (const std::string& header : headers_) {
    widths.push_back(width_of(header));
  }
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], width_of(row[i]));
    }
  }
  std::string text;
  const auto end_row = [&text] {
    while (text.ends_with(' ')) text.pop_back();
    text += '\n';
  };
  const auto append_row = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::string blanks(widths[i] - width_of(cells[i]), ' ');
      if (i > 0) text.append(kGap, ' ');
      text += i == 0 ? cells[i] + blanks : blanks + cells[i];
    }
    end_row();
  };
  const auto append_line = [&] {
    for (std::size_t i = 0; i < widths.size(); ++i) {
      if (i > 0) text.append(kGap, ' ');
      text.append(widths[i], '-');
    }
    end_row();
  };
  append_row(headers_);
  append_line();
  for (const auto& row : rows_) {
    if (row.empty()) {
      append_line();
    } else {
      append_row(row);
    }
  }
  return text;
}

}  // namespace nfold::train
