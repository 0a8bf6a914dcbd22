// Distributed decode attention on GPUs: the random steps of the CPU's tests and the widths of real models, every
// method, against fp64 by the same bounds; graphs; and what is refused before anything is submitted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "partition/cost.h"
#include "runtime/device/cuda/graph.h"
#include "tests/support/gpu_decode.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

using testing::DecodeCase;
using testing::DecodeResult;
using testing::DeviceTensor;
using testing::Gpu;
using testing::GpuDecode;

class CudaDecode : public testing::GpuTest {};

DecodeSpec SmallSpec(DecodeMethod method, int ranks) {
  DecodeSpec spec;
  spec.method = method;
  spec.ranks = ranks;
  spec.heads = 4;
  spec.qk_width = spec.v_width = 64;
  return spec;
}

CudaDecodeOptions SmallOptions() {
  CudaDecodeOptions options;
  options.max_sequences = 2;
  options.max_rows_per_sequence = 3;
  options.max_pages = 5;
  return options;
}

// Tensors of a step of SmallSpec and a layer of four pages.
struct SmallStep {
  static StatusOr<SmallStep> Create(Gpu& gpu, const DecodeSpec& spec, int64_t rows) {
    SmallStep step;
    const int rank = gpu.control->rank();
    const int heads = spec.OutputHeads(rank).size();
    for (const auto& [to, view] :
         {std::pair(&step.query, ConstTensorView::Dense(nullptr, spec.dtype, rows, spec.QueryHeads(rank).size(), 64)),
          {&step.output, ConstTensorView::Dense(nullptr, DType::kFloat32, rows, heads, 64)},
          {&step.lse, ConstTensorView::Dense(nullptr, DType::kFloat32, rows, heads, 1)}}) {
      TESSERA_ASSIGN_OR_RETURN(*to, DeviceTensor::Create(gpu.device, gpu.stream, view));
    }
    const CacheOptions options{{false, 1, 64, 64, spec.dtype}, 1, 64, 4};
    TESSERA_ASSIGN_OR_RETURN(CudaPagedCache made, CudaPagedCache::Create(options, gpu.device, gpu.stream.handle()));
    step.cache.emplace(std::move(made));
    return step;
  }
  DeviceTensor query, output, lse;
  std::optional<CudaPagedCache> cache;
};

// Runs the case twice, which must give the same bits.
Status RunCase(Gpu& gpu, const DecodeCase& problem, const CudaDecodeOptions& options, bool paged,
               DecodeResult& result) {
  TESSERA_ASSIGN_OR_RETURN(GpuDecode decode, GpuDecode::Create(gpu, problem));
  if (paged) TESSERA_RETURN_IF_ERROR(decode.MoveToPagedCache(problem));
  TESSERA_ASSIGN_OR_RETURN(const auto attention,
                           CudaDecodeAttention::Create(*gpu.control, *gpu.data, gpu.device, problem.spec, options));
  TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
  DecodeResult first;
  for (DecodeResult* to : {&first, &result}) {
    TESSERA_RETURN_IF_ERROR(decode.Redraw(problem));
    TESSERA_RETURN_IF_ERROR(step.Upload(decode.sequences(), gpu.stream.handle()));
    TESSERA_RETURN_IF_ERROR(decode.Run(*attention, step));
    TESSERA_RETURN_IF_ERROR(attention->Synchronize());
    TESSERA_RETURN_IF_ERROR(decode.Fetch(*to));
  }
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  };
  if (same(first.output, result.output) && same(first.lse, result.lse)) return absl::OkStatus();
  return absl::InternalError("the second run gave other bits than the first");
}

void ExpectAccurate(Gpu& gpu, const DecodeCase& problem, int64_t expected_rows, bool paged = false) {
  gpu.data->ResetTraffic();
  DecodeResult result;
  ASSERT_EQ(RunCase(gpu, problem, testing::GpuDecodeOptions(problem, expected_rows), paged, result), absl::OkStatus());
  EXPECT_EQ(testing::Judge(problem, gpu.control->rank(), result, problem.spec.dtype), "");
  EXPECT_EQ(testing::ReceivedByAll(gpu), 2 * PredictedBytes(problem.spec));
}

TEST_F(CudaDecode, EveryMethodMatchesFp64AndCountsItsBytes) {
  const int ranks = gpu().control->size();
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < 6; ++i) {
      const std::string name = absl::StrCat("cuda/decode/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const DecodeCase problem = testing::RandomDecodeCase(method, ranks, generator, {.sixteen_bit = true});
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      ExpectAccurate(gpu(), problem, i % 2 == 0 ? 0 : 4096);
    }
  }
}

// The caches of DeepSeek-V3, whole and in slices, and of Llama 3.
TEST_F(CudaDecode, TheWidthsOfModelsMatchFp64) {
  const int ranks = gpu().control->size();
  const CacheRowShape shapes[] = {{true, 1, 576, 512}, {true, 1, 320, 256},  {true, 1, 192, 128},
                                  {true, 1, 128, 64},  {false, 2, 128, 128}, {false, 3, 64, 64}};
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (CacheRowShape shape : shapes) {
      if (method == DecodeMethod::kTpla && !shape.latent) continue;
      const std::string name =
          absl::StrCat("cuda/decode widths/", std::string(Name(method)), "/", ranks, "/", shape.key_width);
      auto generator = testing::GeneratorFor(name);
      shape.dtype = generator() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
      DecodeCase problem;
      do problem = testing::RandomDecodeCase(method, ranks, generator, {.sixteen_bit = true, .shape = shape});
      while (problem.rows() == 0);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      ExpectAccurate(gpu(), problem, 256);
    }
  }
}

// Recorded once per method; then queries, visible ranges and pages are others with every launch.
TEST_F(CudaDecode, ACapturedStepServesOtherSteps) {
  const int ranks = gpu().control->size();
  for (const DecodeMethod method : AllDecodeMethods()) {
    auto generator = testing::GeneratorFor(absl::StrCat("cuda/decode graph/", std::string(Name(method)), "/", ranks));
    DecodeCase problem;
    do problem = testing::RandomDecodeCase(method, ranks, generator, {.sixteen_bit = true});
    while (problem.rows() < 3);
    SCOPED_TRACE(problem.ToString());
    const auto run = [&]() -> Status {
      TESSERA_ASSIGN_OR_RETURN(GpuDecode decode, GpuDecode::Create(gpu(), problem));
      TESSERA_ASSIGN_OR_RETURN(const auto attention,
                               CudaDecodeAttention::Create(*gpu().control, *gpu().data, gpu().device, problem.spec,
                                                           testing::GpuDecodeOptions(problem, 1024)));
      TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
      const auto record = [&] { return decode.Run(*attention, step); };
      TESSERA_RETURN_IF_ERROR(step.Upload(decode.sequences(), gpu().stream.handle()));
      EXPECT_EQ(CudaGraph::Capture(gpu().stream.handle(), record).status().message(),
                absl::StrCat("there is no plan for ", problem.rows(),
                             " query rows, and none is made while a graph is captured: run the step once before"));
      TESSERA_RETURN_IF_ERROR(decode.Run(*attention, step));
      TESSERA_RETURN_IF_ERROR(attention->Synchronize());
      const auto upload = [&] { return step.Upload(decode.sequences(), gpu().stream.handle()); };
      EXPECT_EQ(CudaGraph::Capture(gpu().stream.handle(), upload).status().message(),
                "sequences: a step is uploaded while a graph is captured; upload it before each launch instead");
      TESSERA_ASSIGN_OR_RETURN(const CudaGraph graph, CudaGraph::Capture(gpu().stream.handle(), record));
      for (int launch = 0; launch < 3; ++launch) {
        testing::RedrawStep(problem, generator);
        TESSERA_RETURN_IF_ERROR(decode.Redraw(problem));
        TESSERA_RETURN_IF_ERROR(upload());
        TESSERA_RETURN_IF_ERROR(graph.Launch(gpu().stream.handle()));
        DecodeResult result;
        TESSERA_RETURN_IF_ERROR(decode.Fetch(result));
        EXPECT_EQ(testing::Judge(problem, gpu().control->rank(), result, problem.spec.dtype), "");
      }
      return absl::OkStatus();
    };
    ASSERT_EQ(run(), absl::OkStatus());
  }
}

// The host is ahead of the GPU: a step is uploaded while those before it are still to be copied.
TEST_F(CudaDecode, StepsFollowEachOtherWithoutWaiting) {
  auto generator = testing::GeneratorFor(absl::StrCat("cuda/decode ahead/", gpu().control->size()));
  DecodeCase first;
  do
    first =
        testing::RandomDecodeCase(DecodeMethod::kGatherQuery, gpu().control->size(), generator, {.sixteen_bit = true});
  while (first.rows() < 3);
  DecodeCase second = first;
  testing::RedrawStep(second, generator);
  SCOPED_TRACE(first.ToString());
  const auto run = [&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(const GpuDecode one, GpuDecode::Create(gpu(), first));
    TESSERA_ASSIGN_OR_RETURN(const GpuDecode other, GpuDecode::Create(gpu(), second));
    TESSERA_ASSIGN_OR_RETURN(const auto attention,
                             CudaDecodeAttention::Create(*gpu().control, *gpu().data, gpu().device, first.spec,
                                                         testing::GpuDecodeOptions(first, 0)));
    TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
    for (int i = 0; i < 5; ++i) {
      for (const GpuDecode* decode : {&one, &other}) {
        TESSERA_RETURN_IF_ERROR(step.Upload(decode->sequences(), gpu().stream.handle()));
        TESSERA_RETURN_IF_ERROR(decode->Run(*attention, step));
      }
    }
    TESSERA_RETURN_IF_ERROR(attention->Synchronize());
    for (const auto& [decode, problem] : {std::pair(&one, &first), {&other, &second}}) {
      DecodeResult result;
      TESSERA_RETURN_IF_ERROR(decode->Fetch(result));
      EXPECT_EQ(testing::Judge(*problem, gpu().control->rank(), result, problem->spec.dtype), "");
    }
    return absl::OkStatus();
  };
  ASSERT_EQ(run(), absl::OkStatus());
}

// Appended by kernels, forked in the middle of a page, and attended.
TEST_F(CudaDecode, APagedCacheIsAttendedAsItWasFilled) {
  const int ranks = gpu().control->size();
  for (const CacheRowShape& shape : {CacheRowShape{true, 1, 128, 64}, CacheRowShape{false, 2, 64, 64}}) {
    auto generator = testing::GeneratorFor(absl::StrCat("cuda/decode cache/", ranks, "/", shape.latent));
    DecodeCase problem;
    do
      problem = testing::RandomDecodeCase(DecodeMethod::kTree, ranks, generator, {.sixteen_bit = true, .shape = shape});
    while (problem.rows() == 0);
    SCOPED_TRACE(problem.ToString());
    ExpectAccurate(gpu(), problem, 0, /*paged=*/true);
  }
}

// More numbers of rows than plans are kept, twice over.
TEST_F(CudaDecode, PlansComeAndGoWithTheNumberOfRows) {
  constexpr int kMostRows = 20;
  const DecodeSpec spec = SmallSpec(DecodeMethod::kGatherQuery, gpu().control->size());
  CudaDecodeOptions options;
  options.max_rows_per_sequence = kMostRows;
  const auto run = [&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(const auto attention,
                             CudaDecodeAttention::Create(*gpu().control, *gpu().data, gpu().device, spec, options));
    TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
    for (int i = 0; i < 2 * kMostRows; ++i) {
      const int64_t rows = i % kMostRows;
      TESSERA_ASSIGN_OR_RETURN(const SmallStep small, SmallStep::Create(gpu(), spec, rows));
      const std::vector<Range> nothing(rows);
      const DecodeSequence sequence{0, {}, nothing};
      TESSERA_RETURN_IF_ERROR(step.Upload({&sequence, 1}, gpu().stream.handle()));
      TESSERA_RETURN_IF_ERROR(attention->Run(small.query.view(), small.cache->layer(0), step, small.output.view(),
                                             small.lse.view(), gpu().stream.handle()));
      TESSERA_RETURN_IF_ERROR(attention->Synchronize());
      EXPECT_EQ(attention->program().slots[kDecodeQuerySlot].rows, rows);
      std::vector<float> lse(small.lse.view().elements());
      TensorView host = small.lse.view();
      host.data = lse.data();
      TESSERA_RETURN_IF_ERROR(small.lse.Fetch(host, gpu().stream));
      TESSERA_RETURN_IF_ERROR(gpu().stream.Synchronize("fetching"));
      EXPECT_EQ(lse, std::vector<float>(lse.size(), -INFINITY));
    }
    return absl::OkStatus();
  };
  ASSERT_EQ(run(), absl::OkStatus());
}

TEST_F(CudaDecode, CreateRefusesOnEveryRankWhatOneCannotServe) {
  Communicator& control = *gpu().control;
  const int ranks = control.size(), last = ranks - 1;
  const auto refusal = [&](const DecodeSpec& spec, const CudaDecodeOptions& options) {
    const Status status = CudaDecodeAttention::Create(control, *gpu().data, gpu().device, spec, options).status();
    return std::string(status.message());
  };
  const DecodeSpec spec = SmallSpec(DecodeMethod::kTree, ranks);
  DecodeSpec bad = spec;
  bad.dtype = DType::kFloat32;
  EXPECT_THAT(refusal(bad, SmallOptions()),
              ::testing::HasSubstr("cuda-sm80: its tensor core arithmetic takes bf16 and fp16"));
  bad = spec;
  bad.qk_width = 600;
  EXPECT_THAT(refusal(bad, SmallOptions()),
              ::testing::HasSubstr("no CUDA decode kernel serves bf16 with widths 600 and 64"));
  bad = spec;
  bad.ranks = ranks + 1;
  EXPECT_EQ(refusal(bad, SmallOptions()),
            absl::StrFormat("the decode plan is for %d ranks and the communicator has %d", ranks + 1, ranks));
  CudaDecodeOptions options = SmallOptions();
  options.kernel = control.rank() == last ? "nonsense" : "";
  EXPECT_THAT(refusal(spec, options), ::testing::HasSubstr("no CUDA decode kernel called \"nonsense\""));
  options = SmallOptions();
  options.max_sequences = 0;
  EXPECT_EQ(refusal(spec, options), "cuda decode: max_sequences is 0; it must be from 1 to 65535");
  options = SmallOptions();
  options.max_pages = -1;
  EXPECT_EQ(refusal(spec, options), "cuda decode: max_pages is -1; it must be from 0 to 2147483647");
  options = SmallOptions();
  options.page_tokens = 0;
  EXPECT_EQ(refusal(spec, options), "cuda decode: page_tokens is 0; it must be from 1 to 65536");
  // 64 splits of a million rows of 4 heads in fp32.
  options = SmallOptions();
  options.max_rows = 1 << 20;
  options.expected_rows = 1 << 20;
  const int64_t before = gpu().device.FreeBytes().value();
  EXPECT_THAT(refusal(spec, options),
              ::testing::ContainsRegex("the splits of decode attention needs [0-9]+ bytes of device memory, but on GPU "
                                       ".* [0-9]+ of [0-9]+ are free"));
  EXPECT_EQ(gpu().device.FreeBytes().value(), before);
  if (ranks == 1) return;
  options = SmallOptions();
  options.scale = control.rank() == last ? 2.0f : 1.0f;
  EXPECT_THAT(refusal(spec, options), ::testing::HasSubstr("disagree on the decode scale and soft cap"));
}

TEST_F(CudaDecode, RunNamesTheTensorTheValueAndWhatIsNeeded) {
  const DecodeSpec spec = SmallSpec(DecodeMethod::kReplicatedQuery, gpu().control->size());
  const auto run = [&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(const auto attention, CudaDecodeAttention::Create(*gpu().control, *gpu().data,
                                                                               gpu().device, spec, SmallOptions()));
    TESSERA_ASSIGN_OR_RETURN(const SmallStep small, SmallStep::Create(gpu(), spec, 2));
    TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
    CUstream_st* const stream = gpu().stream.handle();
    const CacheLayer cache = small.cache->layer(0);
    const TensorView q = small.query.view(), o = small.output.view(), l = small.lse.view();
    const auto refusal = [&](const TensorView& a, const CacheLayer& c, const TensorView& b, const TensorView& d) {
      return std::string(attention->Run(a, c, step, b, d, stream).message());
    };
    TensorView bad = q;
    bad.space = MemorySpace::kHost;
    EXPECT_EQ(refusal(bad, cache, o, l), "query: memory space is host; this rank's plan needs device");
    bad = q;
    bad.rows = 7;
    EXPECT_EQ(refusal(bad, cache, o, l), "query: rows is 7; max_rows of this attention is 6");
    bad = q;
    bad.dtype = DType::kFloat16;
    EXPECT_EQ(refusal(bad, cache, o, l), "query: dtype is fp16; this rank's plan needs bf16");
    bad = q;
    bad.row_stride += 8;
    EXPECT_EQ(refusal(bad, cache, o, l), "query: strides are 264 and 64; the tensor must be dense");
    bad = o;
    bad.width = 63;
    EXPECT_EQ(refusal(q, cache, bad, l), "output: width is 63; this rank's plan needs 64");
    bad = l;
    bad.rows = 1;
    EXPECT_EQ(refusal(q, cache, o, bad), "lse: rows is 1; this rank's plan needs 2");
    CacheLayer other = cache;
    other.dtype = DType::kFloat16;
    EXPECT_EQ(refusal(q, other, o, l), "cache: dtype is fp16; this rank's plan needs bf16");
    other = cache;
    other.v_width = 32;
    EXPECT_EQ(refusal(q, other, o, l), "cache: v_width is 32; this rank's plan needs 64");
    other = cache;
    other.page_tokens = 16;
    EXPECT_EQ(refusal(q, other, o, l), "cache: page_tokens is 16; page_tokens of this attention is 64");
    EXPECT_THAT(
        refusal(q, cache, o, l),
        ::testing::HasSubstr("sequences: they have 0 query rows and the query tensor 2; every row must belong"));

    const std::vector<int32_t> page = {3}, pages(6), none, negative = {-1};
    const std::vector<Range> visible = {{0, 2}, {0, 64}}, beyond = {{0, 2}, {0, 65}}, many(4), three(3);
    const auto upload = [&](const std::vector<DecodeSequence>& sequences) {
      return std::string(step.Upload(sequences, stream).message());
    };
    EXPECT_EQ(upload({{}, {}, {}}), "sequences: there are 3; max_sequences of this attention is 2");
    EXPECT_EQ(upload({{}, {0, none, many}}),
              "sequences: query rows of number 1 are 4; max_rows_per_sequence of this attention is 3");
    EXPECT_EQ(upload({{0, pages, visible}}), "sequences: pages are 6; max_pages of this attention is 5");
    EXPECT_EQ(upload({{0, page, beyond}}), "decode: sequence 0 sees cache rows [0, 65) of 64");
    EXPECT_EQ(upload({{0, negative, visible}}), "decode: sequence 0 has page -1");
    EXPECT_EQ(upload({{0, none, three}, {1, none, many}}),
              "sequences: query rows of number 1 are 4; max_rows_per_sequence of this attention is 3");
    EXPECT_EQ(upload({{0, none, three}, {2, none, three}}), "decode: query row 2 belongs to two sequences");
    // Nothing of this has harmed the operator.
    EXPECT_EQ(upload({{0, page, visible}}), "");
    EXPECT_EQ(refusal(q, cache, o, l), "");
    TESSERA_RETURN_IF_ERROR(attention->Synchronize());

    CudaDecodeOptions latent = SmallOptions();
    latent.value_in_key = true;
    TESSERA_ASSIGN_OR_RETURN(const auto for_latents,
                             CudaDecodeAttention::Create(*gpu().control, *gpu().data, gpu().device, spec, latent));
    EXPECT_EQ(for_latents->Run(q, cache, step, o, l, stream).message(),
              "cache: values are not the first columns of the keys; value_in_key of this attention is set");
    CudaDecodeOptions smaller = SmallOptions();
    smaller.max_rows_per_sequence = 2;
    TESSERA_ASSIGN_OR_RETURN(const auto for_less,
                             CudaDecodeAttention::Create(*gpu().control, *gpu().data, gpu().device, spec, smaller));
    EXPECT_EQ(for_less->Run(q, cache, step, o, l, stream).message(),
              "step: it was made by another attention, for more than this one may hold");
    return absl::OkStatus();
  };
  ASSERT_EQ(run(), absl::OkStatus());
}

}  // namespace
}  // namespace tessera
