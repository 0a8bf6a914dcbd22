// tessera plan decode.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

using ::testing::HasSubstr;

TEST(PlanDecode, ComparesAllMethodsAndSaysThatTimesArePredicted) {
  const Outcome all = RunAlone("plan decode --model deepseek-v3 --context 32768 --ranks 4");
  EXPECT_EQ(all.exit_code, 0) << all.err;
  for (const char* const text : {"head", "tpla:2", "tpla:4", "approximate", "gather-query", "replicated-query", "tree",
                                 "(auto)", "predicted", "1152.0", "640.0", "384.0", "288.0"}) {
    EXPECT_THAT(all.out, HasSubstr(text));
  }
  const Outcome huge = RunAlone("plan decode --model llama-3-8b --ranks 65536 --batch 64");
  EXPECT_EQ(huge.exit_code, 0) << huge.err;
}

TEST(PlanDecode, OneMethodComesWithItsPlan) {
  const Outcome one = RunAlone("plan decode --model kimi-k2 --ranks 4 --method gather-query --timeline");
  EXPECT_EQ(one.exit_code, 0) << one.err;
  for (const char* const text :
       {"every part of the cache once", "by closed form", "attend_cache", "merge", "A attend to the cache"}) {
    EXPECT_THAT(one.out, HasSubstr(text));
  }
  EXPECT_THAT(one.out, Not(HasSubstr("DIFFER")));
  const Outcome json = RunAlone("plan decode --model gqa:6,3,16 --ranks 2 --method tree --json");
  const auto document = nlohmann::json::parse(json.out, nullptr, false);
  ASSERT_TRUE(document.is_object()) << json.out << json.err;
  EXPECT_EQ(document["schema"], "tessera-decode-price-1");
  EXPECT_EQ(document["methods"][0]["method"], "tree");
  EXPECT_EQ(document["plan"]["schema"], "tessera-decode-plan-1");
  EXPECT_EQ(document["plan"]["programs"].size(), 2u);
}

TEST(PlanDecode, RefusalsSayWhatIsAllowed) {
  constexpr int kUsage = 2, kBadInput = 3, kRefused = 4;
  const auto expect = [](const std::string& arguments, int code, const std::string& text) {
    const Outcome outcome = RunAlone("plan decode " + arguments);
    EXPECT_EQ(outcome.exit_code, code) << arguments << ": " << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(text)) << arguments;
  };
  expect("", kUsage, "--ranks is required");
  expect("--ranks 2 --method helix", kUsage, "--method");
  expect("--ranks 2 --model gpt", kBadInput, "--model gpt: allowed are deepseek-v2-lite, deepseek-v3, ");
  expect("--ranks 2 --model gqa:6,4,16", kBadInput, "heads must be a multiple of kv_heads");
  expect("--ranks 6 --method tpla --groups 4", kBadInput,
         "groups is 4, which does not divide 6 ranks; groups that do: 1, 2, 3, 6");
  expect("--ranks 3 --method tpla", kBadInput, "groups is 3; it must be one of 1");
  expect("--ranks 2 --batch 0", kBadInput, "batch is 0; it must be from 1");
  expect("--ranks 2 --model llama-3-8b --method tpla", kBadInput, "latent is 0");
  expect("--ranks 4 --timeline", kBadInput, "--timeline draws one method");
  expect("--ranks 512 --method tree --timeline", kRefused, "up to 256 ranks");
  // The parent's flags are still its own.
  EXPECT_THAT(RunAlone("plan --ranks 2").err, HasSubstr("--seq is required"));
}

}  // namespace
}  // namespace tessera::launcher_test
