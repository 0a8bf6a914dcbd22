// Work lists of CUDA attention calls against a pair-by-pair count, and what planning refuses.
#include <gtest/gtest.h>

#include <map>

#include "kernels/cuda/attend.h"
#include "tests/unit/kernels/problem.h"
#include "tests/unit/kernels/shards.h"

namespace tessera::testing {
namespace {

using cuda::Side;
using cuda::WorkLists;

bool Allows(const cuda::DeviceBand& band, int32_t token, int32_t other) {
  return token >= band.block_begin && token < band.block_end && other >= band.begin && other < band.end &&
         other - token >= band.min_offset && other - token <= band.max_offset;
}

// How often each pair of rows meets by the lists, and that nothing is visited in vain.
std::map<std::pair<int64_t, int64_t>, int> Pairs(const WorkLists& lists, int block_rows, int run_rows) {
  std::map<std::pair<int64_t, int64_t>, int> pairs;
  std::map<int64_t, int> owned;
  for (const cuda::RowBlock& block : lists.blocks) {
    EXPECT_GE(block.rows, 1);
    EXPECT_LE(block.rows, block_rows);
    EXPECT_GE(block.runs, 1);
    for (int row = 0; row < block.rows; ++row) EXPECT_EQ(++owned[block.first_row + row], 1) << "a row has two owners";
    for (int r = 0; r < block.runs; ++r) {
      const cuda::Run& run = lists.runs[block.first_run + r];
      for (int first = 0; first < run.rows; first += run_rows) {
        bool met = false;
        for (int i = first; i < std::min(first + run_rows, run.rows); ++i) {
          for (int row = 0; row < block.rows; ++row) {
            bool allowed = run.bands == 0;
            for (int b = 0; b < run.bands; ++b) {
              allowed |= Allows(lists.bands[lists.band_numbers[run.first_band + b]],
                                run.block_token + row * run.block_stride, run.first_token + i * run.stride);
            }
            if (allowed) ++pairs[{block.first_row + row, run.first_row + i}];
            met |= allowed;
          }
        }
        // Between the tokens of a strided segment a narrow band may pass through.
        if (run.stride == 1 && run.block_stride == 1) {
          EXPECT_TRUE(met) << "a piece is visited that nothing meets";
        }
      }
    }
  }
  return pairs;
}

TEST(PlanWork, VisitsEveryPairOnceAndNoMaskedPiece) {
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("cuda/plan/", i);
    SCOPED_TRACE(name);
    Random random(name);
    const int64_t query_tokens = random.Integer(0, 150), key_tokens = random.Integer(0, 150);
    const std::vector<Band> bands = RandomBands(query_tokens, key_tokens, random);
    const Shards queries = RandomShards(query_tokens, random), keys = RandomShards(key_tokens, random);
    std::vector<Tile> tiles;
    std::map<std::pair<int64_t, int64_t>, int> expected;
    for (size_t q = 0; q < queries.segments.size(); ++q) {
      for (size_t k = 0; k < keys.segments.size(); ++k) {
        const Tile tile{queries.first_rows[q], queries.segments[q], keys.first_rows[k], keys.segments[k]};
        tiles.push_back(tile);
        for (int64_t a = 0; a < tile.queries.count; ++a) {
          for (int64_t b = 0; b < tile.keys.count; ++b) {
            for (const Band& band : bands) {
              if (band.Allows(tile.queries.token(a), tile.keys.token(b)))
                ++expected[{tile.query_row + a, tile.key_row + b}];
            }
          }
        }
      }
    }
    const int block_rows = 1 << random.Integer(0, 6), run_rows = 1 << random.Integer(0, 6);
    const auto by_queries = PlanWork(tiles, bands, Side::kQueries, block_rows, run_rows);
    ASSERT_TRUE(by_queries.ok()) << by_queries.status();
    EXPECT_EQ(Pairs(*by_queries, block_rows, run_rows), expected);
    const auto by_keys = PlanWork(tiles, bands, Side::kKeys, block_rows, run_rows);
    ASSERT_TRUE(by_keys.ok()) << by_keys.status();
    std::map<std::pair<int64_t, int64_t>, int> turned;
    for (const auto& [pair, count] : Pairs(*by_keys, block_rows, run_rows)) turned[{pair.second, pair.first}] = count;
    EXPECT_EQ(turned, expected);
  }
}

// A causal mask over long rows: two runs per block, whatever the length.
TEST(PlanWork, IsCompact) {
  const int64_t tokens = 1 << 20;
  const Tile tile{0, {0, tokens, 1}, 0, {0, tokens, 1}};
  const Band causal{{0, tokens}, {0, tokens}, -kUnboundedDiagonal, 0};
  const auto lists = PlanWork({&tile, 1}, {&causal, 1}, Side::kQueries, 128, 64);
  ASSERT_TRUE(lists.ok());
  EXPECT_EQ(lists->blocks.size(), static_cast<size_t>(tokens / 128));
  EXPECT_LE(lists->runs.size(), 2 * lists->blocks.size());
  EXPECT_EQ(lists->blocks[0].first_row, tokens - 128) << "the longest block comes first";
}

TEST(PlanWork, RefusesWhatDoesNotFit32Bits) {
  const Band all{{0, int64_t{1} << 40}, {0, int64_t{1} << 40}};
  const auto plan = [&](const Tile& tile) {
    return std::string(PlanWork({&tile, 1}, {&all, 1}, Side::kQueries, 64, 64).status().message());
  };
  EXPECT_EQ(plan({0, {int64_t{1} << 30, 1, 1}, 0, {0, 1, 1}}),
            "cuda attention: query tokens are [1073741824, 1073741825); they must lie in [0, 2^30)");
  EXPECT_EQ(plan({0, {0, 1, 1}, 0, {0, 2, 1 << 23}}),
            "cuda attention: the stride of key tokens is 8388608; it must be in [1, 2^22]");
  EXPECT_EQ(plan({0, {0, 1, 1}, int64_t{1} << 31, {0, 1, 1}}),
            "cuda attention: key rows are [2147483648, 2147483649); they must lie in [0, 2^31)");
}

TEST(PlanAttend, RefusesShapes) {
  const cuda::AttendKernel& kernel = *cuda::AttendKernels().back();
  const auto plan = [&](auto change) {
    cuda::AttendShape shape;
    shape.qk_width = shape.v_width = 64;
    shape.heads = shape.kv_heads = 4;
    change(shape);
    return std::string(PlanAttend(kernel, shape, {}, {}).status().message());
  };
  EXPECT_EQ(plan([](auto&) {}), "");
  EXPECT_EQ(plan([](auto& s) { s.heads = 0; }), "cuda attention: heads is 0; it must be from 1 to 65535");
  EXPECT_EQ(plan([](auto& s) { s.kv_heads = 70000; }), "cuda attention: kv_heads is 70000; it must be from 1 to 65535");
  EXPECT_EQ(plan([](auto& s) { s.group = 0; }), "cuda attention: group is 0; it must be at least 1");
  EXPECT_EQ(plan([](auto& s) { s.first_query_head = -1; }),
            "cuda attention: first_query_head is -1; it must be at least 0");
  EXPECT_EQ(plan([](auto& s) { s.first_kv_head = -1; }), "cuda attention: first_kv_head is -1; it must be at least 0");
  EXPECT_EQ(plan([](auto& s) { s.first_query_head = 2; }),
            "cuda attention: query heads [2, 6) in groups of 1 read key heads [2, 6), but the call has [0, 4)");
  EXPECT_EQ(plan([](auto& s) { s.scale = INFINITY; }), "cuda attention: the scale is not finite");
  EXPECT_EQ(plan([](auto& s) { s.soft_cap = -1; }), "cuda attention: soft_cap is -1; it must be 0 or positive");
  EXPECT_EQ(plan([](auto& s) { s.position_offset = int64_t{1} << 30; }),
            "cuda attention: position_offset is 1073741824; it must be within 2^30");
  EXPECT_EQ(plan([](auto& s) { s.qk_width = 300; }), "cuda-sm80: no instance for bf16 with head widths 300 and 64");
}

TEST(FindAttendKernel, SaysWhyNot) {
  const auto find = [](cuda::AttendTraits traits, std::string_view name = {}) {
    const auto kernel = cuda::FindAttendKernel(traits, name);
    return kernel.ok() ? std::string((*kernel)->name()) : std::string(kernel.status().message());
  };
  EXPECT_EQ(find({DType::kBFloat16, 64, 64, 86}), "cuda-sm80");
  EXPECT_EQ(find({DType::kFloat16, 33, 7, 120}), "cuda-sm80");
  EXPECT_EQ(find({DType::kFloat16, 33, 7, 90}), "cuda-sm90a");
  EXPECT_NE(find({DType::kBFloat16, 64, 64, 100}, "cuda-sm90a")
                .find("cuda-sm90a: the device has compute capability 10.0; it serves 9.0"),
            std::string::npos);
  EXPECT_EQ(
      find({DType::kFloat32, 64, 64, 80}, "cuda-sm80"),
      "no CUDA attention kernel called \"cuda-sm80\" serves fp32 with head widths 64 and 64:\n  cuda-sm90a: not the "
      "one asked for\n  cuda-sm80: its "
      "tensor core arithmetic takes bf16 and fp16; fp32 would lose digits");
  EXPECT_NE(find({DType::kBFloat16, 64, 64, 75}, "cuda-sm80")
                .find("the device has compute capability 7.5; it serves 8.0 and later"),
            std::string::npos);
  EXPECT_NE(find({DType::kFloat64, 64, 64, 90}).find("fp64 would lose digits"), std::string::npos);
  EXPECT_NE(
      find({DType::kBFloat16, 576, 512, 80})
          .find("query/key and value widths must fit one of those built: 64/64, 96/96, 128/128, 192/128, 256/256"),
      std::string::npos);
}

TEST(LaunchAttend, ChecksWhatItIsGiven) {
  const cuda::AttendKernel& kernel = *cuda::AttendKernels().back();
  cuda::AttendShape shape;
  shape.qk_width = shape.v_width = 64;
  shape.heads = shape.kv_heads = 1;
  const Tile tile{0, {0, 4, 1}, 0, {0, 4, 1}};
  const Band band{{0, 4}, {0, 4}};
  const auto work = PlanAttend(kernel, shape, {&tile, 1}, {&band, 1});
  ASSERT_TRUE(work.ok());
  cuda::AttendShape wider = shape;
  wider.qk_width = wider.v_width = 128;
  EXPECT_EQ(LaunchAttend(kernel, wider, *work, {}, nullptr).message(),
            "cuda-sm80: the work was not planned by this kernel for this shape");
  cuda::AttendShape sloped = shape;
  sloped.alibi = true;
  EXPECT_EQ(LaunchAttend(kernel, sloped, *work, {}, nullptr).message(),
            "cuda attention: the shape has alibi, but alibi_slopes is null");
}

}  // namespace
}  // namespace tessera::testing
