#include "train/monitor/text_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nfold/errors.h"
#include "train/monitor/quantity.h"

namespace nfold::train {
namespace {

TEST(TextTableTest, AlignsColumns) {
  TextTable table({"", "per rank", "one process"});
  table.add_row({"parameters", "40.5 MiB", "40.5 MiB"});
  table.add_row({"größer", "1 B", "2.00 GiB"});
  table.add_line();
  table.add_row({"sum", "", "3 B"});
  EXPECT_EQ(table.text(),
            "            per rank  one process\n"
            "----------  --------  -----------\n"
            "parameters  40.5 MiB     40.5 MiB\n"
            "größer           1 B     2.00 GiB\n"
            "----------  --------  -----------\n"
            "sum                           3 B\n");
}

TEST(TextTableTest, RefusesRowOfOtherLength) {
  TextTable table({"a", "b"});
  EXPECT_THROW(table.add_row({"1"}), c10::ValueError);
  EXPECT_THROW(TextTable({}), c10::ValueError);
}

TEST(WidthOf, CountsColumnsNotBytes) {
  EXPECT_EQ(width_of("abc"), 3U);
  EXPECT_EQ(width_of("größe"), 5U);
  EXPECT_EQ(width_of("東京"), 4U);
  EXPECT_EQ(width_of("e\u0301"), 1U);
  EXPECT_EQ(width_of("😀"), 2U);
  EXPECT_EQ(fit_to_width("東京x", 3), "東");
  EXPECT_EQ(fit_to_width("abc", 5), "abc");
  EXPECT_EQ(fit_to_width("größe", 3), "grö");
}

TEST(Quantity, BytesHaveThreeDigits) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1024), "1.00 KiB");
  EXPECT_EQ(bytes_text(1610612736), "1.50 GiB");
  EXPECT_EQ(bytes_text(1024 * 1024 - 1), "1.00 MiB");
  EXPECT_EQ(bytes_text(45 * 1024 * 1024 + 300000), "45.3 MiB");
  EXPECT_EQ(bytes_text(-2048), "-2.00 KiB");
}

TEST(Quantity, CountsHaveThreeDigits) {
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(9999), "9999");
  EXPECT_EQ(count_text(10000), "10.0 k");
  EXPECT_EQ(count_text(10627584), "10.6 M");
  EXPECT_EQ(count_text(999999), "1.00 M");
  EXPECT_EQ(count_text(std::nan("")), "?");
}

TEST(Quantity, DurationsReadLikeClocks) {
  EXPECT_EQ(duration_text(0), "0 s");
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(192.4), "3:12");
  EXPECT_EQ(duration_text(3723), "1:02:03");
  EXPECT_EQ(duration_text(2 * 86400 + 3 * 3600 + 240), "2 d 03:04");
  EXPECT_EQ(duration_text(-1), "?");
  EXPECT_EQ(duration_text(std::numeric_limits<double>::infinity()), "?");
}

}  // namespace
}  // namespace nfold::train
