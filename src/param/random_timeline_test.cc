#include "param/random_timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <thread>

namespace nfold {
namespace {

const at::Generator& default_generator() {
  return at::detail::getDefaultCPUGenerator();
}

// Three draws of different kinds: whole vectors, and single numbers that leave
// the second half of a pair behind.
at::Tensor draw(at::Generator generator = default_generator()) {
  return torch::cat({torch::rand({5}, generator, torch::kDouble),
                     torch::empty({3}, torch::kDouble).normal_(0, 1, generator),
                     torch::randn({40}, generator, torch::kDouble)});
}

// Draws through the timeline, once it has ended.
at::Tensor replay(RandomTimeline& timeline, const RandomDraw& position) {
  at::Tensor result;
  timeline.run(position, [&] { result = draw(); });
  return result;
}

TEST(RandomTimelineTest, DrawsAreThoseOfTheOrderTheyWereRecordedIn) {
  torch::manual_seed(1);
  const auto first = draw();
  const auto second = draw();
  const auto after = draw();

  torch::manual_seed(1);
  RandomTimeline timeline;
  timeline.begin();
  const auto a = timeline.record(default_generator());
  const auto b = timeline.record(default_generator());
  timeline.end();
  EXPECT_TRUE(torch::equal(replay(timeline, a), first));
  EXPECT_TRUE(torch::equal(replay(timeline, b), second));
  EXPECT_TRUE(torch::equal(draw(), first)) << "not where it was found";
  timeline.leave_final_states();
  EXPECT_TRUE(torch::equal(draw(), after));
}

TEST(RandomTimelineTest, SeedingIsSeenEvenWithTheSeedThatWasThere) {
  torch::manual_seed(1);
  const auto of_one = draw();
  torch::manual_seed(2);
  const auto of_two = draw();

  torch::manual_seed(1);
  RandomTimeline timeline;
  timeline.begin();
  const auto a = timeline.record(default_generator());
  torch::manual_seed(1);
  const auto b = timeline.record(default_generator());
  torch::manual_seed(2);
  EXPECT_EQ(default_generator().current_seed(), 2);
  const auto c = timeline.record(default_generator());
  torch::manual_seed(2);
  timeline.end();
  for (const auto& position : {a, b}) {
    EXPECT_TRUE(torch::equal(replay(timeline, position), of_one));
  }
  EXPECT_TRUE(torch::equal(replay(timeline, c), of_two));
  timeline.leave_final_states();
  EXPECT_TRUE(torch::equal(draw(), of_two));
}

TEST(RandomTimelineTest, ARestoredStateContinuesWhereItWasSaved) {
  const auto fork = [](const std::function<void(int)>& draw_number) {
    at::Generator generator = default_generator();
    torch::manual_seed(1);
    draw_number(0);
    const auto saved = generator.get_state();
    torch::manual_seed(9);
    draw_number(1);
    generator.set_state(saved);
    draw_number(2);
  };
  std::vector<at::Tensor> eager;
  fork([&](int) { eager.push_back(draw()); });

  RandomTimeline timeline;
  std::vector<RandomDraw> recorded;
  timeline.begin();
  fork([&](int) { recorded.push_back(timeline.record(default_generator())); });
  timeline.end();
  for (std::size_t i = 0; i < eager.size(); ++i) {
    EXPECT_TRUE(torch::equal(replay(timeline, recorded[i]), eager[i])) << i;
  }
}

TEST(RandomTimelineTest, GeneratorsOfTheCallerHaveTheirOwnNumbers) {
  const auto expected = draw(at::detail::createCPUGenerator(5));
  at::Generator generator = at::detail::createCPUGenerator(5);
  RandomTimeline timeline;
  timeline.begin();
  const auto a = timeline.record(default_generator());
  const auto b = timeline.record(generator);
  timeline.end();
  timeline.run(a, [] { draw(); });
  at::Tensor actual;
  timeline.run(b, [&] { actual = draw(generator); });
  EXPECT_TRUE(torch::equal(actual, expected));
}

TEST(RandomTimelineTest, NumbersDrawnWithoutAnOperatorAreAnError) {
  torch::manual_seed(1);
  const auto expected = draw();
  torch::manual_seed(1);
  RandomTimeline timeline;
  timeline.begin();
  default_generator().get<at::CPUGeneratorImpl>()->random();
  EXPECT_THROW(timeline.record(default_generator()), c10::NotImplementedError);
  EXPECT_THROW(timeline.end(), c10::NotImplementedError);
  EXPECT_TRUE(torch::equal(draw(), expected));
}

TEST(RandomTimelineTest, TrueStatesTakeUpWhatIsDrawnMeanwhile) {
  torch::manual_seed(1);
  const auto first = draw();
  const auto second = draw();
  const auto third = draw();

  torch::manual_seed(1);
  RandomTimeline timeline;
  timeline.begin();
  const auto a = timeline.record(default_generator());
  EXPECT_FALSE(timeline.is_known(a));
  EXPECT_TRUE(torch::equal(replay(timeline, a), first));
  EXPECT_TRUE(timeline.is_known(a));
  timeline.show_true_states();
  EXPECT_TRUE(torch::equal(draw(), second));
  timeline.hide_true_states();
  timeline.show_true_states();
  timeline.hide_true_states();
  const auto b = timeline.record(default_generator());
  timeline.end();
  EXPECT_TRUE(torch::equal(replay(timeline, b), third));
}

TEST(RandomTimelineTest, AnAbandonedOneGivesTheGeneratorBack) {
  torch::manual_seed(1);
  const auto expected = draw();
  torch::manual_seed(1);
  {
    RandomTimeline timeline;
    timeline.begin();
    timeline.record(default_generator());
    torch::manual_seed(3);
  }
  EXPECT_TRUE(torch::equal(draw(), expected));
}

TEST(RandomTimelineTest, ThreadsTakeTurns) {
  torch::manual_seed(1);
  const auto expected = draw();
  std::vector<at::Tensor> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&result] {
      RandomTimeline timeline;
      timeline.begin();
      torch::manual_seed(1);
      const auto position = timeline.record(default_generator());
      timeline.end();
      result = replay(timeline, position);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) {
    EXPECT_TRUE(torch::equal(result, expected));
  }
}

}  // namespace
}  // namespace nfold
