// Every CUDA implementation of decoding against the fp64 oracle, on the problems and the judge of the CPU's.
#include "kernels/cuda/decode.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/decode_check.h"
#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/decode_problem.h"

namespace tessera::testing {
namespace {

// A CUDA kernel behind the CPU's interface: the whole pool and all lists are copied to the device for each call.
class DeviceDecoder final : public DecodeKernel {
 public:
  DeviceDecoder(const cuda::DecodeDeviceKernel& kernel, int multiprocessors)
      : kernel_(kernel), multiprocessors_(multiprocessors) {}
  std::string_view name() const override { return kernel_.name(); }
  std::string WhyNot(const DecodeTraits& traits) const override {
    return kernel_.WhyNot({traits.dtype, traits.qk_width, traits.v_width, traits.value_in_key, ComputeCapability()});
  }
  Status Decode(const DecodeArgs& args) const override {
    cuda::DecodeShape shape;
    shape.dtype = args.cache.dtype;
    shape.qk_width = args.cache.qk_width;
    shape.v_width = args.cache.v_width;
    shape.value_in_key = TraitsOf(args).value_in_key;
    shape.heads = args.query.heads;
    shape.kv_heads = args.cache.kv_heads;
    shape.first_query_head = args.first_query_head;
    shape.first_kv_head = args.first_kv_head;
    shape.group = args.group;
    shape.scale = args.scale;
    shape.soft_cap = args.soft_cap;
    cuda::DecodeLimits limits;
    limits.sequences = static_cast<int>(args.sequences.size()) + 1;  // the last one stays empty
    limits.query_rows = args.query.rows;
    limits.multiprocessors = multiprocessors_;
    limits.rows_per_sequence = 1;
    std::vector<cuda::DecodeRows> sequences(limits.sequences);
    std::vector<int32_t> pages;
    std::vector<Range> visible;
    int32_t last_page = 0;
    for (size_t s = 0; s < args.sequences.size(); ++s) {
      const DecodeSequence& sequence = args.sequences[s];
      sequences[s] = {static_cast<int32_t>(sequence.first_query_row), static_cast<int32_t>(sequence.visible.size()),
                      static_cast<int32_t>(pages.size()), static_cast<int32_t>(visible.size())};
      pages.insert(pages.end(), sequence.pages.begin(), sequence.pages.end());
      visible.insert(visible.end(), sequence.visible.begin(), sequence.visible.end());
      limits.rows_per_sequence = std::max(limits.rows_per_sequence, static_cast<int>(sequence.visible.size()));
      limits.cached_rows =
          std::max<int64_t>(limits.cached_rows, static_cast<int64_t>(sequence.pages.size()) * args.cache.page_tokens);
      for (int32_t page : sequence.pages) last_page = std::max(last_page, page);
    }
    TESSERA_ASSIGN_OR_RETURN(const cuda::DecodeWork work, PlanDecode(kernel_, shape, limits));
    const DeviceStream stream;
    const DeviceTensor query(args.query, stream), output(args.output, stream), lse(args.lse, stream);
    const auto copied = [&stream](const auto& values) {
      DeviceMemory memory(values.size() * sizeof(values[0]));
      memory.CopyFrom(values.data(), values.size() * sizeof(values[0]), stream);
      return memory;
    };
    const DeviceMemory d_sequences = copied(sequences), d_pages = copied(pages), d_visible = copied(visible);
    const DeviceMemory workspace(work.workspace_bytes);
    // Pages from the first to the last that is used; a page ends with the last head's last value.
    const CacheLayer& cache = args.cache;
    const size_t bytes = pages.empty() ? 0 : last_page * cache.page_stride + PageBytes(cache);
    const DeviceMemory pool(bytes, reinterpret_cast<uintptr_t>(cache.key) % 256);
    pool.CopyFrom(cache.key, bytes, stream);
    cuda::DecodePointers pointers;
    pointers.query = query.const_view();
    pointers.output = output.view();
    pointers.lse = lse.view();
    pointers.cache = cache;
    pointers.cache.key = pool.data();
    pointers.cache.value = pool.data() + (cache.value - cache.key);
    pointers.sequences = reinterpret_cast<const cuda::DecodeRows*>(d_sequences.data());
    pointers.pages = reinterpret_cast<const int32_t*>(d_pages.data());
    pointers.visible = reinterpret_cast<const cuda::VisibleRows*>(d_visible.data());
    pointers.workspace = workspace.data();
    TESSERA_RETURN_IF_ERROR(LaunchDecode(kernel_, shape, work, pointers, stream.get()));
    output.CopyBack(args.output, stream);
    lse.CopyBack(args.lse, stream);
    return absl::OkStatus();
  }

 private:
  static size_t PageBytes(const CacheLayer& cache) {
    const auto element = static_cast<int64_t>(SizeInBytes(cache.dtype));
    const int64_t rows = cache.page_tokens - 1, heads = cache.kv_heads - 1;
    return std::max(rows * cache.key_row_stride + heads * cache.key_head_stride + cache.qk_width * element,
                    (cache.value - cache.key) + rows * cache.value_row_stride + heads * cache.value_head_stride +
                        cache.v_width * element);
  }

  const cuda::DecodeDeviceKernel& kernel_;
  const int multiprocessors_;
};

class CudaDecode : public ::testing::TestWithParam<const cuda::DecodeDeviceKernel*> {
 protected:
  // Many multiprocessors: many splits.
  void SetUp() override {
    const auto preferred = cuda::FindDecodeDeviceKernel({DType::kBFloat16, 64, 64, false, ComputeCapability()});
    ASSERT_TRUE(preferred.ok()) << preferred.status();
    if (*preferred != GetParam()) GTEST_SKIP() << "this device prefers " << (*preferred)->name();
  }
  DeviceDecoder kernel(int multiprocessors = 100) const { return {*GetParam(), multiprocessors}; }
};

TEST_P(CudaDecode, RandomProblems) {
  int run = 0;
  for (int i = 0; run < 200; ++i) {
    const std::string name = absl::StrCat("cuda/decode/", i);
    Random random(name);
    DecodeProblem problem = RandomDecodeProblem(random);
    if (problem.shape().dtype == DType::kFloat32) continue;
    // With scores of 1e4 a row is one key's value, exact in the plain computation; the error of the whole problem would
    // be that of the one row that lies between two keys.
    if (std::abs(problem.scale) > 10.0f) problem.scale /= 50.0f;
    ++run;
    SCOPED_TRACE(name + ": " + Describe(problem));
    const DeviceDecoder decoder = kernel(random.OneIn(3) ? 1 : 100);
    DecodeJudge(problem).ExpectAccurate(Decode(decoder, problem));
  }
}

TEST_P(CudaDecode, WidthsOfLatentAndGroupedCaches) {
  struct Widths {
    int qk, v;
    bool latent;
  };
  for (const auto [qk, v, latent] : {Widths{576, 512, true},
                                     {320, 256, true},
                                     {192, 128, true},
                                     {128, 64, true},
                                     {64, 64, false},
                                     {96, 96, false},
                                     {128, 128, false},
                                     {192, 128, false},
                                     {256, 256, false}}) {
    for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      const std::string name =
          absl::StrCat("cuda/decode widths/", qk, "/", v, "/", latent, "/", std::string(Name(dtype)));
      SCOPED_TRACE(name);
      Random random(name);
      const int kv_heads = latent ? 1 : 2, heads = latent ? 40 : 8;
      // A long sequence of one query row, a speculative one of three, one that sees nothing.
      const DecodeProblem problem({dtype, heads, kv_heads, qk, v, latent, 64},
                                  {{700, {{0, 700}}}, {130, {{0, 128}, {0, 129}, {0, 130}}}, {5, {{}}}}, random);
      const Decoded decoded = Decode(kernel(), problem);
      DecodeJudge(problem).ExpectAccurate(decoded);
      const Decoded again = Decode(kernel(), problem);
      EXPECT_EQ(decoded.output.bytes(), again.output.bytes());
      EXPECT_EQ(decoded.lse.bytes(), again.lse.bytes());
    }
  }
}

// Part of the heads, as a rank of a head-parallel mesh has them.
TEST_P(CudaDecode, PartOfTheHeads) {
  for (int i = 0; i < 20; ++i) {
    Random random(absl::StrCat("cuda/decode heads/", i));
    const int kv_heads = static_cast<int>(random.Integer(1, 3)),
              heads = kv_heads * static_cast<int>(random.Integer(1, 6));
    const DecodeProblem problem({DType::kBFloat16, heads, kv_heads, 64, 64, false, 16},
                                {{200, {{0, 199}, {0, 200}}}, {90, {{10, 90}}}}, random);
    const int begin = static_cast<int>(random.Integer(0, heads - 1));
    const Decoded whole = Decode(kernel(), problem);
    Tensor output(DType::kFloat32, problem.query_rows(), heads - begin, 64);
    Tensor lse(DType::kFloat32, problem.query_rows(), heads - begin, 1);
    // The same splits: as many thread blocks.
    ASSERT_TRUE(kernel(1).Decode(problem.Args({begin, heads}, output, lse)).ok());
    for (size_t s = 0; s < problem.sequences(); ++s) {
      const int64_t first = problem.sequence(s).first_query_row;
      for (int64_t row = first; row < first + static_cast<int64_t>(problem.sequence(s).visible.size()); ++row) {
        for (int head = begin; head < heads; ++head) {
          EXPECT_NEAR(lse.Get(row, head - begin, 0), whole.lse.Get(row, head, 0), 1e-5f);
          EXPECT_NEAR(output.Get(row, head - begin, 7), whole.output.Get(row, head, 7), 1e-2f);
        }
      }
    }
  }
}

// A value that is not finite reaches the rows that see it and no other.
TEST_P(CudaDecode, PoisonStaysWithTheRowsThatSeeIt) {
  for (bool latent : {false, true}) {
    for (float poison : {std::nanf(""), INFINITY}) {
      Random random("cuda/decode poison");
      DecodeProblem problem({DType::kBFloat16, 2, 1, 96, 64, latent, 16}, {{300, {{0, 200}, {0, 300}, {150, 180}}}},
                            random);
      const Decoded clean = Decode(kernel(), problem);
      if (latent) {
        problem.SetKey(0, 250, 0, 3, poison);
      } else {
        problem.SetValue(0, 250, 0, 3, poison);
      }
      const Decoded poisoned = Decode(kernel(), problem);
      const int64_t first = problem.sequence(0).first_query_row;
      for (int head = 0; head < 2; ++head) {
        for (int i = 0; i < 64; ++i) {
          EXPECT_EQ(poisoned.output.Get(first, head, i), clean.output.Get(first, head, i));
          EXPECT_EQ(poisoned.output.Get(first + 2, head, i), clean.output.Get(first + 2, head, i));
        }
        // In a latent cache infinity is part of the key too: it may score minus infinity and be left out.
        if (!latent || std::isnan(poison)) {
          EXPECT_FALSE(std::isfinite(poisoned.output.Get(first + 1, head, 3)));
        }
      }
    }
  }
}

TEST(PlanDecode, RefusesAndSizes) {
  const cuda::DecodeDeviceKernel& kernel = *cuda::DecodeDeviceKernels().back();
  cuda::DecodeShape shape;
  shape.qk_width = 576;
  shape.v_width = 512;
  shape.value_in_key = true;
  shape.heads = 128;
  shape.kv_heads = 1;
  shape.group = 128;
  const cuda::DecodeLimits limits{2, 1, 2, 100000, 132};
  const auto work = PlanDecode(kernel, shape, limits);
  ASSERT_TRUE(work.ok()) << work.status();
  EXPECT_EQ(work->tiles, 8);
  EXPECT_EQ(work->splits, 17);
  EXPECT_EQ(work->workspace_bytes, 17 * 2 * 128 * 513 * 4);
  const auto message = [&](auto change) {
    cuda::DecodeShape s = shape;
    cuda::DecodeLimits l = limits;
    change(s, l);
    return std::string(PlanDecode(kernel, s, l).status().message());
  };
  EXPECT_EQ(message([](auto&, auto& l) { l.sequences = 0; }),
            "cuda decode: sequences is 0; it must be from 1 to 65535");
  EXPECT_EQ(message([](auto&, auto& l) { l.rows_per_sequence = 0; }),
            "cuda decode: rows_per_sequence is 0; it must be from 1 to 65536");
  EXPECT_EQ(message([](auto&, auto& l) { l.query_rows = -1; }), "cuda decode: query_rows is -1; it must be at least 0");
  EXPECT_EQ(message([](auto&, auto& l) { l.cached_rows = int64_t{1} << 31; }),
            "cuda decode: cached_rows is 2147483648; it must be in [0, 2^31)");
  EXPECT_EQ(message([](auto&, auto& l) { l.multiprocessors = 0; }),
            "cuda decode: multiprocessors is 0; it must be at least 1");
  EXPECT_EQ(message([](auto& s, auto&) { s.qk_width = 600; }),
            "cuda-sm80: no instance for bf16 with head widths 600 and 512");
  EXPECT_NE(kernel.WhyNot({DType::kBFloat16, 600, 512, true, 80}).find("128/64, 192/128, 320/256, 576/512"),
            std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Present, CudaDecode,
                         ::testing::ValuesIn(cuda::DecodeDeviceKernels().begin(), cuda::DecodeDeviceKernels().end()),
                         [](const auto& info) {
                           std::string name(info.param->name());
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace tessera::testing
