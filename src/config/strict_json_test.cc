#include "nfold/strict_json.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "config/base64.h"
#include "config/nearest_key.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// The text of the error that reading ends with; empty if there is none.
template <typename Read>
std::string error_of(std::string_view text, Read read) {
  try {
    JsonDocument document = JsonDocument::from_text(text, "run.json");
    JsonObject root = document.root();
    read(root);
    document.raise_if_violated();
  } catch (const c10::ValueError& error) {
    return message_of(error);
  }
  return "";
}

TEST(StrictJson, AbsentKeysLeaveTheTargetAlone) {
  JsonDocument document = JsonDocument::from_text("{}", "run.json");
  JsonObject root = document.root();
  std::int64_t steps = 7;
  EXPECT_FALSE(root.read("steps", steps));
  EXPECT_EQ(steps, 7);
  EXPECT_FALSE(root.object("train").object("inner").read("steps", steps));
  root.finish();
  EXPECT_FALSE(document.is_violated());
}

TEST(StrictJson, ReadsEveryKind) {
  JsonDocument document = JsonDocument::from_text(
      R"({"b": true, "i": -3, "d": 0.5, "s": "x", "t": ["a", "b"],
          "one": "a", "n": [1, 2.5], "k": [1, 2e3], "o": null, "p": 4})",
      "run.json");
  JsonObject root = document.root();
  bool b = false;
  std::int64_t i = 0;
  double d = 0;
  std::string s;
  std::vector<std::string> t, one;
  std::vector<double> n;
  std::vector<std::int64_t> k;
  std::optional<std::int64_t> o = 5, p;
  EXPECT_TRUE(root.read("b", b));
  EXPECT_TRUE(root.read("i", i));
  EXPECT_TRUE(root.read("d", d));
  EXPECT_TRUE(root.read("s", s));
  EXPECT_TRUE(root.read("t", t));
  EXPECT_TRUE(root.read("one", one));
  EXPECT_TRUE(root.read("n", n));
  EXPECT_TRUE(root.read("k", k));
  EXPECT_TRUE(root.read("o", o));
  EXPECT_TRUE(root.read("p", p));
  root.finish();
  document.raise_if_violated();
  EXPECT_TRUE(b);
  EXPECT_EQ(i, -3);
  EXPECT_EQ(d, 0.5);
  EXPECT_EQ(s, "x");
  EXPECT_THAT(t, ElementsAre("a", "b"));
  EXPECT_THAT(one, ElementsAre("a"));
  EXPECT_THAT(n, ElementsAre(1, 2.5));
  EXPECT_THAT(k, ElementsAre(1, 2000));
  EXPECT_FALSE(o.has_value());
  EXPECT_EQ(p, 4);
}

TEST(StrictJson, IntegersMayBeWrittenAsWholeFloats) {
  const auto read = [](std::string_view number) {
    JsonDocument document = JsonDocument::from_text(
        "{\"n\": " + std::string(number) + "}", "run.json");
    std::int64_t value = -1;
    document.root().read("n", value);
    return document.is_violated() ? std::nullopt : std::optional(value);
  };
  EXPECT_EQ(read("5e8"), 500'000'000);
  EXPECT_EQ(read("1e6"), 1'000'000);
  EXPECT_EQ(read("2.0"), 2);
  EXPECT_EQ(read("-0.0"), 0);
  EXPECT_EQ(read("9223372036854775807"), 9223372036854775807);
  EXPECT_EQ(read("-9223372036854775808"),
            std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(read("1.5"), std::nullopt);
  EXPECT_EQ(read("9223372036854775808"), std::nullopt);
  EXPECT_EQ(read("18446744073709551616"), std::nullopt);
  EXPECT_EQ(read("1e19"), std::nullopt);
  EXPECT_EQ(read("-1e19"), std::nullopt);
  EXPECT_EQ(read("true"), std::nullopt);
  EXPECT_EQ(read("\"5\""), std::nullopt);
  EXPECT_EQ(read("null"), std::nullopt);
  EXPECT_EQ(read("[1]"), std::nullopt);
}

TEST(StrictJson, ReportsEveryViolationWithItsPathInOneError) {
  const std::string error = error_of(
      R"({"a": {"b": {"c": 4, "list": [1, "x", 2.5]}}, "flag": "true",
          "rate": -1, "name": 3, "mode": "fast", "inner": 1, "what": 0})",
      [](JsonObject& root) {
        std::int64_t c = 0;
        std::vector<std::int64_t> list;
        bool flag = false;
        double rate = 0;
        std::string name;
        JsonObject b = root.object("a").object("b");
        b.read("c", c, {.least = 0, .most = 3});
        b.read("list", list);
        root.read("flag", flag);
        root.read("rate", rate, {.least = 0, .least_is_open = true});
        root.read("name", name);
        constexpr std::string_view kModes[] = {"slow", "even", "wild"};
        EXPECT_FALSE(root.read_choice("mode", kModes));
        root.object("inner").read("c", c);
        root.finish();
      });
  EXPECT_EQ(
      error,
      "run.json: 9 problems\n"
      "  a.b.c: expected an integer from 0 to 3 but found 4\n"
      "  a.b.list[1]: expected an integer but found the text \"x\"\n"
      "  a.b.list[2]: expected an integer but found 2.5\n"
      "  flag: expected true or false but found the text \"true\"; remove the "
      "quotes\n"
      "  rate: expected a number above 0 but found -1\n"
      "  name: expected a text in quotes but found 3\n"
      "  mode: expected slow, even or wild but found the text \"fast\"\n"
      "  inner: expected an object in braces but found 1\n"
      "  what: unknown key; known here are a, flag, rate, name, mode, inner");
}

TEST(StrictJson, RangesSayWhatTheyHold) {
  EXPECT_EQ((JsonRange{.least = 1}.describe("an integer")),
            "an integer of at least 1");
  EXPECT_EQ((JsonRange{.most = 0.5}.describe("a number")),
            "a number of at most 0.5");
  EXPECT_EQ((JsonRange{.most = 1, .most_is_open = true}.describe("a number")),
            "a number below 1");
  EXPECT_EQ((JsonRange{.least = 0, .most = 1, .most_is_open = true}.describe(
                "a number")),
            "a number from 0 and below 1");
  EXPECT_FALSE((JsonRange{.least = 0, .least_is_open = true}.holds(0)));
  EXPECT_TRUE((JsonRange{.least = 0}.holds(0)));
}

TEST(StrictJson, UnknownKeysNameTheNearest) {
  const auto error_for = [](std::string_view text) {
    return error_of(text, [](JsonObject& root) {
      std::int64_t value = 0;
      JsonObject train = root.object("train");
      train.read("steps", value);
      train.read("save_interval", value);
      train.read("warmup_min", value);
      train.read("warmup_max", value);
      const std::vector<std::string> elsewhere = {"data.path", "train.steps"};
      train.finish(elsewhere);
      root.finish();
    });
  };
  EXPECT_THAT(error_for(R"({"train": {"stpes": 1}})"),
              HasSubstr("train.stpes: unknown key; did you mean steps?"));
  EXPECT_THAT(error_for(R"({"train": {"saveInterval": 1}})"),
              HasSubstr("did you mean save_interval?"));
  EXPECT_THAT(error_for(R"({"train": {"warmup_mxx": 1}})"),
              HasSubstr("did you mean warmup_max?"));
  EXPECT_THAT(error_for(R"({"train": {"warmup_m": 1}})"),
              HasSubstr("did you mean warmup_min or warmup_max?"));
  EXPECT_THAT(error_for(R"({"train": {"path": 1}})"),
              HasSubstr("train.path: unknown key; did you mean data.path?"));
  EXPECT_THAT(error_for(R"({"trian": {}})"),
              HasSubstr("trian: unknown key; did you mean train?"));
}

TEST(StrictJson, DuplicateKeysAreViolationsAtAnyDepth) {
  const std::string error = error_of(
      R"({"a": 1, "b": {"c": [{"d": 1}, {"d": 2, "e": 0, "d": 3}]}, "a": 2})",
      [](JsonObject& root) {
        root.raw("a");
        root.raw("b");
        root.finish();
      });
  EXPECT_EQ(error,
            "run.json: 2 problems\n"
            "  b.c[1].d: given twice; remove one of the two\n"
            "  a: given twice; remove one of the two");
}

TEST(StrictJson, SameKeyInSiblingsIsNoDuplicate) {
  EXPECT_EQ(error_of(R"({"a": {"x": 1, "y": {"x": 1}}, "b": {"x": 1},
                         "c": [{"x": 1}, {"x": 1}]})",
                     [](JsonObject&) {}),
            "");
}

TEST(StrictJson, ArraysOfObjectsAreRead) {
  JsonDocument document = JsonDocument::from_text(
      R"({"runs": [{"n": 1}, {"n": 2, "m": 0}, 3]})", "run.json");
  JsonObject root = document.root();
  std::int64_t sum = 0;
  for (JsonObject& run : root.objects("runs")) {
    std::int64_t n = 0;
    run.read("n", n);
    sum += n;
    run.finish();
  }
  root.finish();
  EXPECT_EQ(sum, 3);
  try {
    document.raise_if_violated();
    FAIL() << "the document has violations";
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(message_of(error),
              "run.json: 2 problems\n"
              "  runs[2]: expected an object in braces but found 3\n"
              "  runs[1].m: unknown key; known here are n");
  }
}

TEST(StrictJson, AutoIsAbsentAndNotedOnce) {
  JsonDocument document =
      JsonDocument::from_text(R"({"a": {"lr": "auto"}})", "run.json");
  JsonObject a = document.root().object("a");
  double lr = 3;
  EXPECT_FALSE(a.read("lr", lr));
  EXPECT_FALSE(a.has("lr"));
  EXPECT_EQ(lr, 3);
  a.require("lr");
  EXPECT_TRUE(document.is_violated());
  EXPECT_THAT(document.notes(),
              ElementsAre("a.lr: \"auto\" is taken as the default"));
}

TEST(StrictJson, CommentsAreSkipped) {
  EXPECT_EQ(error_of("// head\n{\"a\": /* in between */ 1 // tail\n}",
                     [](JsonObject& root) {
                       std::int64_t a = 0;
                       EXPECT_TRUE(root.read("a", a));
                     }),
            "");
}

TEST(StrictJson, TextThatIsNotJsonSaysWhere) {
  const auto nothing = [](JsonObject&) {};
  EXPECT_THAT(
      error_of("{\n  \"a\": 1,,\n}", nothing),
      testing::AllOf(HasSubstr("run.json: not readable as JSON"),
                     HasSubstr("line 2"), Not(HasSubstr("json.exception"))));
  EXPECT_THAT(error_of("", nothing), HasSubstr("not readable as JSON"));
  EXPECT_THAT(error_of("{\"a\": 1e999}", nothing),
              HasSubstr("not readable as JSON"));
  EXPECT_THAT(error_of("[1]", nothing),
              HasSubstr("expected a JSON object in braces but found [1]"));
}

TEST(StrictJson, UnsupportedAloneIsNotImplemented) {
  JsonDocument document = JsonDocument::from_text(R"({"a": 1})", "run.json");
  document.root().unsupported("a", "is not available; use b");
  EXPECT_THROW(document.raise_if_violated(), c10::NotImplementedError);
  document.root().violation("b", "is wrong");
  EXPECT_THROW(document.raise_if_violated(), c10::ValueError);
}

TEST(StrictJson, OverridesAreReadAsJsonElseAsText) {
  JsonDocument document =
      JsonDocument::from_text(R"({"a": {"n": 1}})", "run.json");
  document.set("a.n=5e3");
  document.set("a.b.c=true");
  document.set("name=two words=x");
  document.set("list=[1, 2]");
  document.set("empty=");
  JsonObject root = document.root();
  std::int64_t n = 0;
  bool c = false;
  std::string name, empty = "full";
  std::vector<std::int64_t> list;
  EXPECT_TRUE(root.object("a").read("n", n));
  EXPECT_TRUE(root.object("a").object("b").read("c", c));
  EXPECT_TRUE(root.read("name", name));
  EXPECT_TRUE(root.read("empty", empty));
  EXPECT_TRUE(root.read("list", list));
  EXPECT_EQ(n, 5000);
  EXPECT_TRUE(c);
  EXPECT_EQ(name, "two words=x");
  EXPECT_EQ(empty, "");
  EXPECT_THAT(list, ElementsAre(1, 2));
}

TEST(StrictJson, OverridesWithoutANameOrThroughAValueAreErrors) {
  JsonDocument document = JsonDocument::from_text(R"({"a": 1})", "run.json");
  EXPECT_THROW(document.set("a"), c10::ValueError);
  EXPECT_THROW(document.set("=1"), c10::ValueError);
  EXPECT_THROW(document.set("b..c=1"), c10::ValueError);
  try {
    document.set("a.b=2");
    FAIL() << "a is no object";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(message_of(error), HasSubstr("a is 1, which has no key b"));
  }
}

TEST(StrictJson, MissingFilesAndFoldersAreIoErrors) {
  EXPECT_THROW(JsonDocument::from_file("/nonexistent/run.json"), IoError);
  EXPECT_THROW(
      JsonDocument::from_file(std::filesystem::temp_directory_path().string()),
      IoError);
}

TEST(StrictJson, ReadersOutliveTheirDocument) {
  std::optional<JsonObject> train;
  {
    JsonDocument document =
        JsonDocument::from_text(R"({"train": {"steps": 3}})", "run.json");
    train = document.root().object("train");
  }
  std::int64_t steps = 0;
  EXPECT_TRUE(train->read("steps", steps));
  EXPECT_EQ(steps, 3);
}

TEST(StrictJson, RootIsOneReader) {
  JsonDocument document = JsonDocument::from_text(R"({"a": {}})", "run.json");
  document.root().object("a").finish();
  document.root().finish();
  EXPECT_FALSE(document.is_violated());
}

TEST(NearestKey, DistanceCountsEdits) {
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("stage", "STAGE"), 0U);
  EXPECT_EQ(edit_distance("stgae", "stage"), 1U);
  EXPECT_EQ(edit_distance("gradient_clipp1ng", "gradient_clipping"), 1U);
}

TEST(NearestKey, FarNamesAreNotOffered) {
  const std::vector<std::string> names = {"stage", "offload_param"};
  EXPECT_THAT(nearest_keys("zzzzz", names), testing::IsEmpty());
}

TEST(Base64, ReadsBothAlphabetsWithAndWithoutPadding) {
  EXPECT_EQ(decode_base64("e30="), "{}");
  EXPECT_EQ(decode_base64(" e30\n"), "{}");
  EXPECT_EQ(decode_base64("Pj8+Pw=="), ">?>?");
  EXPECT_EQ(decode_base64("Pj8-Pw"), ">?>?");
  EXPECT_EQ(decode_base64("_-8="), "\xff\xef");
  EXPECT_EQ(decode_base64("a"), std::nullopt);
  EXPECT_EQ(decode_base64("no base64!"), std::nullopt);
  EXPECT_EQ(decode_base64(""), std::nullopt);
}

}  // namespace
}  // namespace nfold
