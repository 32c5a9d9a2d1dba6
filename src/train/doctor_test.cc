#include "train/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace nfold::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const Fact& fact_named(const std::vector<Fact>& facts,
                       const std::string& name) {
  const auto found =
      std::find_if(facts.begin(), facts.end(),
                   [&](const Fact& fact) { return fact.name == name; });
  EXPECT_NE(found, facts.end()) << name;
  return *found;
}

TEST(Doctor, ExaminesWhatTheReadmePromises) {
  const std::vector<Fact> facts = examine_machine();
  for (const char* name :
       {"nfold", "torch", "compiler", "build type", "sanitizers", "CUDA",
        "SIMD", "cores", "RAM", "/dev/shm", "lockable memory", "huge pages",
        "io_uring", "gloo"}) {
    EXPECT_FALSE(fact_named(facts, name).value.empty()) << name;
  }
}

TEST(Doctor, GlooWorksHere) {
  const std::vector<Fact> facts = examine_machine();
  EXPECT_THAT(fact_named(facts, "gloo").value, HasSubstr("agree"));
  EXPECT_FALSE(has_fatal(facts));
}

TEST(Doctor, ARemedyStandsBeneathItsFactAndIsCounted) {
  const std::string text = format_facts(
      {{"a", "one", "fine"}, {"b", "second", "broken", "mend it", true}});
  EXPECT_THAT(text, HasSubstr("a\n  one     fine\n"));
  EXPECT_THAT(text, HasSubstr("b\n  second  broken\n          -> mend it\n"));
  EXPECT_THAT(text, HasSubstr("1 to look at"));
}

TEST(Doctor, SaysSoWhenNothingIsLacking) {
  const std::string text = format_facts({{"a", "one", "fine"}});
  EXPECT_THAT(text, HasSubstr("Nothing is lacking"));
  EXPECT_THAT(text, Not(HasSubstr("->")));
}

TEST(Doctor, OnlyWhatTrainingNeedsIsFatal) {
  EXPECT_FALSE(has_fatal({{"a", "one", "slow", "buy another"}}));
  EXPECT_TRUE(has_fatal({{"a", "one", "broken", "mend it", true}}));
}

}  // namespace
}  // namespace nfold::train
