// Every decode implementation against fp64, on caches that hold NaN wherever a query must not look.
#include "kernels/decode.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <tuple>

#include "tests/unit/kernels/amx_software.h"
#include "tests/unit/kernels/decode_problem.h"

namespace tessera::testing {
namespace {

#ifdef TESSERA_SANITIZED
constexpr int kProblems = 30;
#else
constexpr int kProblems = 200;
#endif

DecodeTraits TraitsOf(const DecodeShape& shape) {
  return {shape.dtype, shape.qk_width, shape.v_width, shape.latent};
}

TEST(Decode, RandomProblemsAgreeWithFp64OnEveryImplementation) {
  for (int i = 0; i < kProblems; ++i) {
    const std::string name = absl::StrCat("decode/", i);
    Random random(name);
    const DecodeProblem problem = RandomDecodeProblem(random);
    const DecodeJudge judge(problem);
    for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(problem.shape()))) {
      SCOPED_TRACE(absl::StrCat(name, " ", std::string(kernel->name()), ": ", Describe(problem)));
      judge.ExpectAccurate(Decode(*kernel, problem));
    }
  }
}

// The shapes that are used: whole and sliced latent caches, expanded keys, grouped heads.
TEST(Decode, ShapesInUseAgreeWithFp64OnEveryImplementation) {
  const DecodeShape shapes[] = {
      {DType::kBFloat16, 16, 1, 576, 512, true, 64},  {DType::kFloat16, 5, 1, 320, 256, true, 16},
      {DType::kFloat32, 3, 1, 192, 128, true, 32},    {DType::kBFloat16, 7, 1, 128, 64, true, 64},
      {DType::kBFloat16, 32, 8, 128, 128, false, 16}, {DType::kFloat32, 4, 4, 192, 128, false, 64},
      {DType::kBFloat16, 130, 1, 20, 12, true, 64}};
  for (const DecodeShape& shape : shapes) {
    Random random(absl::StrCat("shape ", shape.qk_width, "/", shape.heads));
    const DecodeProblem problem(shape, {{700, {{0, 699}, {0, 700}}}, {3, {{0, 3}}}, {0, {{}}}}, random);
    const DecodeJudge judge(problem);
    for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
      SCOPED_TRACE(absl::StrCat(std::string(kernel->name()), ": ", Describe(problem)));
      judge.ExpectAccurate(Decode(*kernel, problem));
    }
  }
}

// What tiles are for, and all that they meet: every latent sharding and grouped heads, tiles of heads that are full or
// not, rows that see different keys, pages that end inside a tile, blocks that do not fill up.
TEST(Decode, TilesOfHeadsAndKeysAgreeWithFp64OnEveryImplementation) {
  static constexpr std::pair<int, int> kLatent[] = {{576, 512}, {320, 256}, {192, 128}, {128, 64}};
  for (int i = 0; i < kProblems / 5; ++i) {
    const std::string name = absl::StrCat("tiles/", i);
    Random random(name);
    DecodeShape shape;
    shape.latent = random.OneIn(2);
    if (shape.latent) {
      std::tie(shape.qk_width, shape.v_width) = kLatent[random.Integer(0, 3)];
      static constexpr int kHeads[] = {1, 7, 16, 17, 32, 40, 64, 128};
      shape.heads = kHeads[random.Integer(0, 7)];
    } else {
      shape.kv_heads = static_cast<int>(random.Integer(1, 4));
      shape.heads = shape.kv_heads * static_cast<int>(random.OneIn(2) ? 4 : random.Integer(1, 20));
      shape.qk_width = 32 * static_cast<int>(random.Integer(2, 8));
      shape.v_width = random.OneIn(2) ? shape.qk_width : 8 * static_cast<int>(random.Integer(1, 20));
    }
    static constexpr int kPages[] = {1, 13, 16, 48, 64, 256};
    shape.page_tokens = kPages[random.Integer(0, 5)];
    // At most so many products as take fp64 a fraction of a second.
    const int64_t rows = random.Integer(1, std::min<int64_t>(8, 1 + 200 / shape.heads));
    DecodeLengths lengths;
    lengths.cached = random.Integer(1, std::min<int64_t>(1200, 60'000 / (rows * shape.heads)));
    const bool causal = random.OneIn(2);
    for (int64_t row = 0; row < rows; ++row) {
      Range range{0, std::max<int64_t>(0, lengths.cached - rows + 1 + row)};
      if (!causal) range = {random.Integer(0, lengths.cached / 2), random.Integer(lengths.cached / 2, lengths.cached)};
      lengths.visible.push_back(range);
    }
    DecodeProblem problem(shape, {lengths}, random);
    if (random.OneIn(4)) problem.soft_cap = random.Uniform(1.0f, 50.0f);
    if (random.OneIn(4)) problem.scale *= random.Uniform(10.0f, 1000.0f);
    const DecodeJudge judge(problem);
    for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
      SCOPED_TRACE(absl::StrCat(name, " ", std::string(kernel->name()), ": ", Describe(problem)));
      judge.ExpectAccurate(Decode(*kernel, problem));
    }
  }
}

// Rows that end where the memory does. Keys that tiles or vectors take together may be fewer than these hold.
TEST(Decode, ReadsNothingBehindTheLastRow) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  constexpr size_t kPages = 16;
  void* const memory = mmap(nullptr, (kPages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const end = static_cast<std::byte*>(memory) + kPages * page;
  ASSERT_EQ(mprotect(end, page, PROT_NONE), 0);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (int width : {7, 32, 40, 64}) {
      for (int64_t rows : {1, 5, 16, 20, 32, 47, 70}) {
        DecodeArgs args;
        std::byte* const first = end - rows * width * static_cast<int64_t>(SizeInBytes(dtype));
        for (int64_t i = 0; i < rows * width; ++i) StoreFromFloat(first, dtype, i, 1.0f);
        args.cache.key = args.cache.value = first;
        args.cache.dtype = dtype;
        args.cache.qk_width = args.cache.v_width = width;
        args.cache.page_tokens = static_cast<int>(rows);
        args.cache.key_row_stride = args.cache.value_row_stride = width * static_cast<int64_t>(SizeInBytes(dtype));
        const int32_t pages[] = {0};
        const Range visible[] = {{0, rows}};
        const DecodeSequence sequences[] = {{0, pages, visible}};
        args.sequences = sequences;
        args.group = 3;
        Tensor query(dtype, 1, 3, width);
        query.Fill(0.5f);
        args.query = query.view();
        for (const DecodeKernel* kernel : TestedDecoders({dtype, width, width, true})) {
          const Decoded decoded(1, 3, width);
          args.output = decoded.output.view();
          args.lse = decoded.lse.view();
          ASSERT_TRUE(kernel->Decode(args).ok()) << kernel->name();
          for (int h = 0; h < 3; ++h) {
            EXPECT_NEAR(decoded.output.Get(0, h, width - 1), 1.0, 1e-5) << kernel->name() << " rows " << rows;
            EXPECT_NEAR(decoded.lse.Get(0, h, 0), 0.5 * width + std::log(rows), 1e-4) << kernel->name();
          }
        }
      }
    }
  }
  munmap(memory, (kPages + 1) * page);
}

TEST(Decode, BitsDependNeitherOnThreadsNorOnTheOtherSequences) {
  const DecodeShape shape{DType::kBFloat16, 8, 2, 40, 24, false, 16};
  std::vector<DecodeLengths> lengths(3);
  lengths[0] = {5000, {{0, 4000}, {3, 5000}}};
  lengths[1] = {900, {{0, 900}}};
  lengths[2] = {70, {{0, 70}, {}, {60, 70}}};
  Random random("threads");
  const DecodeProblem problem(shape, lengths, random);
  for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
    const Decoded one = Decode(*kernel, problem, 1);
    for (int threads : {2, 3, 7}) {
      const Decoded more = Decode(*kernel, problem, threads);
      for (size_t s = 0; s < problem.sequences(); ++s) {
        EXPECT_EQ(more.Of(problem.sequence(s)).output, one.Of(problem.sequence(s)).output) << kernel->name();
        EXPECT_EQ(more.Of(problem.sequence(s)).lse, one.Of(problem.sequence(s)).lse) << kernel->name();
      }
    }
    for (size_t s = 0; s < problem.sequences(); ++s) {
      const Decoded alone(problem.query_rows(), 8, 24);
      DecodeArgs args = problem.Args(alone.output, alone.lse);
      args.sequences = args.sequences.subspan(s, 1);
      ASSERT_TRUE(kernel->Decode(args).ok());
      EXPECT_EQ(alone.Of(problem.sequence(s)).output, one.Of(problem.sequence(s)).output) << kernel->name();
      for (int64_t row = 0; row < problem.query_rows(); ++row) {
        const int64_t r = row - problem.sequence(s).first_query_row;
        const bool own = r >= 0 && r < static_cast<int64_t>(problem.sequence(s).visible.size());
        EXPECT_EQ(std::isnan(alone.lse.Get(row, 0, 0)), !own) << "row " << row << " of another sequence";
      }
    }
  }
}

TEST(Decode, RangesOfHeadsEqualTheWhole) {
  const DecodeShape shape{DType::kFloat16, 12, 3, 33, 17, false, 5};
  Random random("heads");
  const DecodeProblem problem(shape, {{77, {{0, 76}, {0, 77}}}}, random);
  for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
    const Decoded whole = Decode(*kernel, problem);
    for (const HeadRange heads : {HeadRange{0, 5}, {3, 7}, {5, 6}, {4, 12}}) {
      const Decoded part(problem.query_rows(), heads.size(), 17);
      ASSERT_TRUE(kernel->Decode(problem.Args(heads, part.output, part.lse)).ok());
      const DecodeSequence& sequence = problem.sequence(0);
      for (int64_t row = sequence.first_query_row; row < sequence.first_query_row + 2; ++row) {
        for (int h = 0; h < heads.size(); ++h) {
          EXPECT_NEAR(part.lse.Get(row, h, 0), whole.lse.Get(row, heads.begin + h, 0), 1e-5) << kernel->name();
          for (int i = 0; i < 17; ++i) {
            EXPECT_NEAR(part.output.Get(row, h, i), whole.output.Get(row, heads.begin + h, i), 1e-5) << kernel->name();
          }
        }
      }
    }
  }
}

// Rows of one call that share a register tile and a block of keys.
TEST(Decode, PoisonStaysWithTheRowsThatSeeIt) {
  const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (bool latent : {false, true}) {
      for (float poison : poisons) {
        const DecodeShape shape{dtype, 4, 2, 24, 24, latent, 8};
        const std::vector<DecodeLengths> lengths = {{150, {{0, 100}, {60, 150}, {0, 59}, {101, 150}}}};
        Random random("poison");
        const DecodeProblem problem(shape, lengths, random);
        for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
          const Result clean = Decode(*kernel, problem).Of(problem.sequence(0));
          Random again("poison");
          DecodeProblem damaged(shape, lengths, again);
          damaged.SetKey(0, 100, 1, 3, poison);
          damaged.SetValue(0, 100, 1, 3, poison);
          const Result result = Decode(*kernel, damaged).Of(damaged.sequence(0));
          for (size_t row = 0; row < 4; ++row) {
            for (size_t head = 0; head < 4; ++head) {
              const size_t pair = row * 4 + head;
              const bool hit = row == 1 && head >= 2;
              if (hit) {
                EXPECT_FALSE(std::isfinite(result.output[pair * 24 + 3])) << kernel->name();
              } else {
                EXPECT_EQ(result.lse[pair], clean.lse[pair]) << kernel->name() << " row " << row;
                for (size_t i = 0; i < 24; ++i) EXPECT_EQ(result.output[pair * 24 + i], clean.output[pair * 24 + i]);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Decode, KeysThatAllScoreMinusInfinityGiveTheIdentity) {
  const DecodeShape shape{DType::kFloat32, 2, 1, 1, 3, false, 4};
  Random random("minus infinity");
  DecodeProblem problem(shape, {{9, {{0, 9}}}}, random);
  problem.query.Fill(1.0f);
  for (int64_t row = 0; row < 9; ++row) problem.SetKey(0, row, 0, 0, -std::numeric_limits<float>::infinity());
  for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
    const Result result = Decode(*kernel, problem).Of(problem.sequence(0));
    for (double o : result.output) EXPECT_EQ(o, 0.0) << kernel->name();
    for (double lse : result.lse) EXPECT_EQ(lse, -INFINITY) << kernel->name();
  }
}

TEST(Decode, StopsWhenCancelled) {
  const DecodeShape shape{DType::kBFloat16, 2, 1, 16, 16, true, 16};
  Random random("cancelled");
  const DecodeProblem problem(shape, {{100, {{0, 100}}}}, random);
  const std::atomic<bool> cancelled = true;
  for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
    const Decoded decoded(problem.query_rows(), 2, 16);
    DecodeArgs args = problem.Args(decoded.output, decoded.lse);
    args.cancelled = &cancelled;
    const Status status = kernel->Decode(args);
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    EXPECT_NE(status.message().find(std::string(kernel->name())), std::string_view::npos);
  }
}

TEST(Decode, RefusesWhatItCannotRead) {
  const DecodeShape shape{DType::kBFloat16, 4, 2, 8, 8, false, 4};
  Random random("refusals");
  const DecodeProblem problem(shape, {{10, {{0, 10}}}, {2, {{0, 2}}}}, random);
  const Decoded decoded(problem.query_rows(), 4, 8);
  const Range beyond[] = {{0, 13}};
  const int32_t negative[] = {0, -1, 2};
  std::vector<DecodeSequence> sequences;
  const std::pair<const char*, std::function<void(DecodeArgs&)>> cases[] = {
      {"every tensor must be in host memory", [](DecodeArgs& a) { a.lse.space = MemorySpace::kDevice; }},
      {"query is fp16, the cache bf16", [](DecodeArgs& a) { a.query.dtype = DType::kFloat16; }},
      {"output and LSE must be fp32", [](DecodeArgs& a) { a.output.dtype = DType::kBFloat16; }},
      {"cache widths must be at least 1", [](DecodeArgs& a) { a.cache.v_width = 0; }},
      {"query width 7 differs from the cache's key width 8", [](DecodeArgs& a) { a.query.width = 7; }},
      {"output must be as wide as", [](DecodeArgs& a) { a.output.width = 7; }},
      {"must agree with query in rows and heads", [](DecodeArgs& a) { a.lse.heads = 3; }},
      {"page_tokens must be at least 1", [](DecodeArgs& a) { a.cache.page_tokens = 0; }},
      {"group must be positive", [](DecodeArgs& a) { a.group = 0; }},
      {"read key heads outside [0, 2)", [](DecodeArgs& a) { a.group = 1; }},
      {"sees cache rows [0, 13) of 12",
       [&](DecodeArgs& a) {
         sequences[0].visible = beyond;
         (void)a;
       }},
      {"sequence 0 has page -1",
       [&](DecodeArgs& a) {
         sequences[0].pages = negative;
         (void)a;
       }},
      {"sequence 1 has query rows", [&](DecodeArgs& a) { sequences[1].first_query_row = a.query.rows; }},
      {"belongs to two sequences", [&](DecodeArgs&) { sequences[1].first_query_row = sequences[0].first_query_row; }},
      {"the cache has no memory", [](DecodeArgs& a) { a.cache.value = nullptr; }},
      {"scale must be finite", [](DecodeArgs& a) { a.scale = NAN; }},
      {"threads must be at least 1", [](DecodeArgs& a) { a.threads = 0; }},
  };
  for (const DecodeKernel* kernel : TestedDecoders(TraitsOf(shape))) {
    for (const auto& [text, damage] : cases) {
      DecodeArgs args = problem.Args(decoded.output, decoded.lse);
      sequences.assign(args.sequences.begin(), args.sequences.end());
      args.sequences = sequences;
      damage(args);
      const Status status = kernel->Decode(args);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text << ": " << status;
      EXPECT_NE(status.message().find(text), std::string_view::npos) << status.message();
    }
  }
}

TEST(DecodeRegistry, ReferenceIsLastAndRefusalsNameEveryImplementation) {
  const auto kernels = DecodeKernels();
  ASSERT_GE(kernels.size(), 2u);
  EXPECT_EQ(kernels.back()->name(), "reference");
  const DecodeTraits traits{DType::kBFloat16, 576, 512, true};
  for (std::string_view name : {"", "auto"}) {
    const auto found = FindDecodeKernel(traits, name);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, PresentDecoders(traits).front());
  }
  for (const DecodeKernel* kernel : PresentDecoders(traits))
    EXPECT_EQ(*FindDecodeKernel(traits, kernel->name()), kernel);
  const auto unknown = FindDecodeKernel(traits, "gpu");
  const auto impossible = FindDecodeKernel({DType::kFloat32, 0, 1, false});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(impossible.status().code(), absl::StatusCode::kNotFound);
  for (const DecodeKernel* kernel : kernels) {
    const std::string name(kernel->name());
    EXPECT_NE(unknown.status().message().find(name + ": not the one asked for"), std::string_view::npos);
    EXPECT_NE(impossible.status().message().find("\n  " + name + ": "), std::string_view::npos);
  }
}

// The decoder for tiles, over the unit that is there everywhere.
TEST(DecodeRegistry, TilesAreForBFloat16) {
  const DecodeKernel* const software = SoftwareAmxDecoder();
  if (software == nullptr) GTEST_SKIP() << "this processor has no AVX-512 BF16";
  EXPECT_EQ(software->WhyNot({DType::kBFloat16, 576, 512, true}), "");
  EXPECT_EQ(software->WhyNot({DType::kFloat16, 576, 512, true}), "it multiplies bf16, not fp16");
  EXPECT_EQ(software->WhyNot({DType::kFloat32, 128, 128, false}), "it multiplies bf16, not fp32");
  EXPECT_EQ(software->WhyNot({DType::kBFloat16, 5000, 512, true}), "widths must lie in [1, 4096]");
  const auto kernels = DecodeKernels();
  const auto tiles = std::find_if(kernels.begin(), kernels.end(), [](auto* k) { return k->name() == "cpu-amx"; });
  ASSERT_NE(tiles, kernels.end());
  const std::string reason = (*tiles)->WhyNot({DType::kBFloat16, 576, 512, true});
  EXPECT_TRUE(reason.empty() || reason == "this processor or system has no AMX for bf16") << reason;
}

TEST(DecodeRegistry, WhatIsRefusedDoesNotRun) {
  const DecodeShape shape{DType::kFloat32, 1, 1, 4, 4, false, 4};
  Random random("absent");
  const DecodeProblem problem(shape, {{4, {{0, 4}}}}, random);
  const Decoded decoded(problem.query_rows(), 1, 4);
  for (const DecodeKernel* kernel : DecodeKernels()) {
    const std::string reason = kernel->WhyNot(TraitsOf(shape));
    if (reason.empty()) continue;
    const Status status = kernel->Decode(problem.Args(decoded.output, decoded.lse));
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find(reason), std::string_view::npos);
  }
}

}  // namespace
}  // namespace tessera::testing
