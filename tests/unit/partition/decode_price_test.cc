#include "partition/decode_price.h"

#include <gtest/gtest.h>

#include <functional>

namespace tessera {
namespace {

DecodeProblem DeepSeekV3() {
  DecodeProblem problem;
  problem.context_tokens = 32768;
  problem.hidden = 7168;
  problem.heads = 128;
  problem.query_rank = 1536;
  problem.latent = 512;
  problem.nope = 128;
  problem.rope = 64;
  problem.value = 128;
  return problem;
}
DecodeProblem Llama8B() {
  DecodeProblem problem;
  problem.context_tokens = 32768;
  problem.hidden = 4096;
  problem.heads = 32;
  problem.kv_heads = 8;
  problem.nope = problem.value = 128;
  return problem;
}
DecodePrice PriceOf(const DecodeProblem& problem, DecodeMethod method, int ranks, int groups = 1,
                    const MachineModel& machine = {}) {
  const auto price = PriceDecode(problem, method, ranks, groups, machine);
  EXPECT_TRUE(price.ok()) << price.status();
  return price.ok() ? *price : DecodePrice();
}

// (C / g + dr) * 2 bytes.
TEST(DecodePrice, CacheBytesAreTheFormulas) {
  for (const auto& [groups, bytes] : {std::pair(1, 1152), {2, 640}, {4, 384}, {8, 256}}) {
    EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 8, groups).cache_bytes_per_token, bytes);
  }
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 8).cache_bytes_per_token, 1152);
  for (const DecodeMethod method : {DecodeMethod::kGatherQuery, DecodeMethod::kReplicatedQuery, DecodeMethod::kTree}) {
    EXPECT_EQ(PriceOf(DeepSeekV3(), method, 8).cache_bytes_per_token, 1152 / 8);
  }
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 8).cache_bytes, 1152 * int64_t{32768});
  EXPECT_EQ(PriceOf(Llama8B(), DecodeMethod::kHead, 1).cache_bytes_per_token, 4096);
  EXPECT_EQ(PriceOf(Llama8B(), DecodeMethod::kHead, 4).cache_bytes_per_token, 1024);
  EXPECT_EQ(PriceOf(Llama8B(), DecodeMethod::kHead, 64).cache_bytes_per_token, 512);  // one key/value head at least
}

TEST(DecodePrice, WeightsAreThoseOfTheRanksHeadsAndColumns) {
  // q_down + q_up, kv_down, absorbed keys and values, output; in elements.
  const int64_t shared = 1536 * 7168 + 7168 * 576;
  const auto per_heads = [](int64_t queries, int64_t outputs, int64_t columns) {
    return 1536 * queries * 192 + columns * (queries * 128 + outputs * 128) + outputs * 128 * 7168;
  };
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 1).weight_bytes, 2 * (shared + per_heads(128, 128, 512)));
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 2).weight_bytes, 2 * (shared + per_heads(64, 64, 512)));
  // Two groups on two ranks: twice the heads in half the columns, and half the query and output projections.
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 2, 2).weight_bytes, 2 * (shared + per_heads(64, 64, 512)));
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kReplicatedQuery, 2).weight_bytes,
            2 * (shared + per_heads(128, 64, 512)));
  EXPECT_EQ(PriceOf(Llama8B(), DecodeMethod::kHead, 4).weight_bytes, 2 * 4096 * 128 * (8 + 2 * 2 + 8));
  DecodeProblem bare = DeepSeekV3();
  bare.hidden = 0;
  const DecodePrice price = PriceOf(bare, DecodeMethod::kHead, 2);
  EXPECT_EQ(price.weight_bytes, 0);
  EXPECT_EQ(price.projection_seconds, 0);
  EXPECT_EQ(price.all_reduce_bytes, 0);
}

TEST(DecodePrice, SlicesExchangeQueriesAndValuesOfTheirHeads) {
  // Every rank of g slices receives the queries (192 wide) it did not project and its own values (128) of the others.
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 2, 2).slice_bytes, 128 * (192 + 128) * 4);
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 8, 4).slice_bytes, 3 * 128 * (192 + 128) * 4);
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 8, 1).slice_bytes, 0);
  EXPECT_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 8).slice_bytes, 0);
  MachineModel slow_links;
  slow_links.link_latency_seconds = 1;
  slow_links.link_bytes_per_second = 1e18;
  EXPECT_NEAR(PriceOf(DeepSeekV3(), DecodeMethod::kTpla, 8, 4, slow_links).slice_seconds, 6, 1e-6);
}

TEST(DecodePrice, TheSlowerOfReadingAndComputingCounts) {
  MachineModel reads;
  reads.memory_bytes_per_second = 1e9;
  reads.flops_per_second = reads.projection_flops_per_second = 1e18;
  const DecodePrice slow_memory = PriceOf(DeepSeekV3(), DecodeMethod::kHead, 4, 1, reads);
  EXPECT_DOUBLE_EQ(slow_memory.attention_seconds, 1152 * 32768 / 1e9);
  EXPECT_DOUBLE_EQ(slow_memory.projection_seconds, static_cast<double>(slow_memory.weight_bytes) / 1e9);
  MachineModel computes;
  computes.memory_bytes_per_second = 1e18;
  computes.flops_per_second = 1e9;
  EXPECT_DOUBLE_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kHead, 4, 1, computes).attention_seconds,
                   2.0 * 32 * 32768 * (576 + 512) / 1e9);
  // Sharding tokens, every head meets a quarter of them: the same products, and a quarter of the bytes.
  EXPECT_DOUBLE_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTree, 4, 1, computes).attention_seconds,
                   2.0 * 128 * 8192 * (576 + 512) / 1e9);
  EXPECT_DOUBLE_EQ(PriceOf(DeepSeekV3(), DecodeMethod::kTree, 4, 1, reads).attention_seconds, 1152 * 8192 / 1e9);
}

TEST(DecodePrice, AgreesWithTheSimulationOfThePlan) {
  for (const int ranks : {1, 2, 3, 4, 8, 16}) {
    for (const DecodeMethod method : AllDecodeMethods()) {
      DecodeProblem problem = DeepSeekV3();
      problem.hidden = 0;
      problem.context_tokens = 1024;  // so that messages are a good part
      problem.batch = 4;
      const MachineModel machine;
      const DecodePrice price = PriceOf(problem, method, ranks, method == DecodeMethod::kTpla ? ranks & -ranks : 1);
      const DecodePlan plan = BuildDecodePlan(price.spec);
      const double simulated = Simulate(plan, machine, AttendSeconds(problem, price.spec, machine)).seconds;
      EXPECT_LT(price.seconds(), 1.5 * simulated) << ToString(price.spec);
      EXPECT_GT(price.seconds(), simulated / 1.5) << ToString(price.spec);
      EXPECT_EQ(price.exchange_bytes, CountPlan(plan).Total().bytes_received);
    }
  }
}

TEST(DecodePrice, AutoTakesTheCheapestExactMethod) {
  MachineModel fast_links;
  fast_links.memory_bytes_per_second = 1e9;
  fast_links.flops_per_second = fast_links.projection_flops_per_second = 1e15;
  fast_links.link_latency_seconds = 1e-9;
  fast_links.link_bytes_per_second = 1e12;
  // The whole cache at every rank costs more than exchanging queries, and replicated queries cost weights.
  const auto long_context = ChooseDecodeMethod(DeepSeekV3(), 8, fast_links);
  ASSERT_TRUE(long_context.ok());
  EXPECT_EQ(Name(long_context->spec.method), "gather-query");
  MachineModel slow_links;
  slow_links.link_latency_seconds = 1e-2;
  EXPECT_EQ(Name(ChooseDecodeMethod(DeepSeekV3(), 8, slow_links)->spec.method), "head");
  EXPECT_EQ(Name(ChooseDecodeMethod(Llama8B(), 8, fast_links)->spec.method), "head");
  const auto all = PriceDecodeMethods(DeepSeekV3(), 8, fast_links);
  ASSERT_TRUE(all.ok());
  std::vector<std::string> names;
  for (const DecodePrice& price : *all) {
    names.push_back(absl::StrCat(std::string(Name(price.spec.method)), price.exact ? "" : "~", price.spec.groups));
    EXPECT_TRUE(!price.exact || price.seconds() >= long_context->seconds()) << names.back();
  }
  EXPECT_EQ(names, (std::vector<std::string>{"head1", "tpla~2", "tpla~4", "tpla~8", "gather-query1",
                                             "replicated-query1", "tree1"}));
}

TEST(DecodePrice, RefusalsNameFieldValueAndWhatIsAllowed) {
  struct Refusal {
    const char* error;
    std::function<void(DecodeProblem&)> change;
    DecodeMethod method = DecodeMethod::kHead;
    int groups = 1;
  };
  const Refusal refusals[] = {
      {"batch is 0; it must be from 1 to 65536", [](DecodeProblem& p) { p.batch = 0; }},
      {"context_tokens is -1", [](DecodeProblem& p) { p.context_tokens = -1; }},
      {"value is 0", [](DecodeProblem& p) { p.value = 0; }},
      {"kv_heads is 2; a latent cache has one", [](DecodeProblem& p) { p.kv_heads = 2; }},
      {"groups is 4, which does not divide 6 ranks", [](DecodeProblem&) {}, DecodeMethod::kTpla, 4},
      {"latent is 0", [](DecodeProblem& p) { p.latent = 0; }, DecodeMethod::kTpla, 2},
      {"groups is 3; it must be one of 1, 2", [](DecodeProblem&) {}, DecodeMethod::kTpla, 3},
  };
  for (const Refusal& refusal : refusals) {
    DecodeProblem problem = DeepSeekV3();
    refusal.change(problem);
    const auto price = PriceDecode(problem, refusal.method, 6, refusal.groups, {});
    const std::string error(price.status().message());
    EXPECT_NE(error.find(refusal.error), std::string::npos) << error << "\nexpected: " << refusal.error;
  }
}

}  // namespace
}  // namespace tessera
