// The dense maps around latent attention on a GPU, each by itself, against fp64: every method's share of heads and
// columns, odd shapes, every dtype; and what is refused.
#include <gmock/gmock.h>

#include <cstring>

#include "kernels/cuda/row_ops.h"
#include "runtime/latent/cuda/projections.h"
#include "tests/support/one_gpu.h"
#include "tests/support/problems.h"
#include "tests/unit/latent/projections64.h"

namespace tessera {
namespace {

using latent_test::ProjectionCase;
using latent_test::Projections64;
using latent_test::RandomLayer;
using latent_test::RelativeError;
using latent_test::StoredWeights;
using latent_test::TestShape;
using reference::Dense;
using ::testing::HasSubstr;

constexpr int64_t kPositions = 50;
constexpr int64_t kWorkspaceBytes = 1 << 16;

// The most that one rounding changes a number by, relatively; of fp32 the roundings of sums of some dozens.
double Epsilon(DType dtype) {
  return dtype == DType::kFloat32 ? 2e-6 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

class CudaProjections : public testing::OneGpuTest {
 protected:
  StatusOr<CudaMlaProjections> Create(const MlaShape& shape, const MlaWeights& weights, DType compute) const {
    DeviceUploads uploads(*device_, stream_.handle());
    return CudaMlaProjections::Create(shape, weights, MlaShare::Whole(shape), compute, {}, uploads);
  }
};

class CudaProjectionsWithoutMemory : public CudaProjections {};

// One rank's projections of a random layer and the tensors of a step, all NaN, on the GPU.
class Layer {
 public:
  Layer(const ProjectionCase& c, uint64_t seed, const CudaDevice& device, const CudaStream& stream)
      : case_(c), device_(device), stream_(stream), random_(c.shape, seed), stored_(random_.weights, c.checkpoint) {}

  Status Prepare() {
    const int64_t bytes = LatentTensors::Place(case_.shape, case_.setup, case_.compute, case_.rows(), 0, nullptr, t);
    TESSERA_RETURN_IF_ERROR(Allocate(bytes, memory_));
    (void)LatentTensors::Place(case_.shape, case_.setup, case_.compute, case_.rows(), 0, memory_.data(), t);
    TESSERA_RETURN_IF_ERROR(Allocate(kWorkspaceBytes, workspace_));
    TESSERA_ASSIGN_OR_RETURN(cublas_, cuda::Cublas::Create(workspace_.data(), kWorkspaceBytes));
    DeviceUploads uploads(device_, stream_.handle());
    TESSERA_ASSIGN_OR_RETURN(
        table_,
        uploads.Add(cuda::RopeTableValues(case_.shape.rope_options, case_.shape.rope, kPositions), "a rope table"));
    std::vector<std::byte> positions(case_.positions.size() * sizeof(int64_t));
    if (!positions.empty()) std::memcpy(positions.data(), case_.positions.data(), positions.size());
    TESSERA_ASSIGN_OR_RETURN(positions_, uploads.Add(std::move(positions), "positions"));
    hidden64_ = latent_test::Rounded(random_.Hidden(case_.rows()), DType::kFloat32);
    const std::vector<float> hidden(hidden64_.values.begin(), hidden64_.values.end());
    TESSERA_ASSIGN_OR_RETURN(hidden_, uploads.Add(hidden, "a hidden state"));
    TESSERA_ASSIGN_OR_RETURN(projections_, CudaMlaProjections::Create(case_.shape, stored_.view(), case_.setup.share,
                                                                      case_.compute, case_.energy_share, uploads));
    return uploads.Finish();
  }

  const CudaMlaProjections& projections() const { return *projections_; }
  const MlaWeights& weights() const { return stored_.view(); }
  ProjectionContext on() {
    return {*cublas_, reinterpret_cast<const float*>(table_.data()),
            reinterpret_cast<const int64_t*>(positions_.data()), stream_.handle()};
  }
  // [rows, 1, D] fp32, device; and what it is.
  ConstTensorView hidden() const {
    auto view = ConstTensorView::Dense(hidden_.data(), DType::kFloat32, case_.rows(), 1, case_.shape.hidden);
    view.space = MemorySpace::kDevice;
    return view;
  }
  const Dense& hidden64() const { return hidden64_; }

  // Random numbers into an fp32 tensor, and what they are: [rows * heads, width].
  Dense Draw(const TensorView& view) {
    Dense values(view.rows * view.heads, view.width);
    for (double& value : values.values) value = latent_test::RoundTo(DType::kFloat32, random_.Normal());
    const std::vector<float> floats(values.values.begin(), values.values.end());
    if (!floats.empty()) {
      EXPECT_EQ(CopyAsync(view.data, floats.data(), view.bytes(), stream_.handle()), absl::OkStatus());
      EXPECT_EQ(stream_.Synchronize("copying random numbers"), absl::OkStatus());
    }
    return values;
  }
  Dense Fetch(const TensorView& view) const {
    std::vector<std::byte> bytes(view.bytes());
    if (!bytes.empty()) {
      EXPECT_EQ(CopyAsync(bytes.data(), view.data, view.bytes(), stream_.handle()), absl::OkStatus());
      EXPECT_EQ(stream_.Synchronize("fetching a result"), absl::OkStatus());
    }
    Dense values(view.rows * view.heads, view.width);
    for (size_t i = 0; i < values.values.size(); ++i) values.values[i] = LoadAsFloat(bytes.data(), view.dtype, i);
    return values;
  }

  LatentTensors t;

 private:
  Status Allocate(int64_t bytes, DeviceBuffer& buffer) const {
    TESSERA_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Allocate(device_, bytes, "a test's memory", stream_.handle()));
    return bytes == 0 ? absl::OkStatus() : FillAsync(buffer.data(), 0xff, bytes, stream_.handle());
  }

  const ProjectionCase& case_;
  const CudaDevice& device_;
  const CudaStream& stream_;
  RandomLayer random_;
  const StoredWeights stored_;
  Dense hidden64_;
  DeviceBuffer memory_, workspace_, table_, positions_, hidden_;
  std::optional<cuda::Cublas> cublas_;
  std::optional<CudaMlaProjections> projections_;
};

void ExpectMatchesFp64(Layer& layer, const ProjectionCase& c) {
  const Projections64 truth(c, layer.weights());
  const CudaMlaProjections& projections = layer.projections();
  const ProjectionContext on = layer.on();
  const LatentTensors& t = layer.t;
  const double compute = Epsilon(c.compute), cache = Epsilon(c.setup.spec.dtype), fp32 = Epsilon(DType::kFloat32);
  const auto expect = [&](const char* what, const TensorView& view, const Dense& exact, double bound) {
    const Dense result = layer.Fetch(view);
    ASSERT_EQ(result.values.size(), exact.values.size()) << what;
    if (exact.values.empty()) return;
    EXPECT_LE(RelativeError(result, exact), bound) << what;
  };
  EXPECT_EQ(projections.weight_bytes(), truth.weight_bytes());

  const auto hidden = projections.RoundHidden(layer.hidden(), t, on.stream);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  EXPECT_EQ(hidden->dtype, c.compute);
  if (c.rows() > 0) {  // no copy where none is needed
    EXPECT_EQ(hidden->data == layer.hidden().data, c.compute == DType::kFloat32);
  }
  ASSERT_EQ(projections.ProjectCacheRows(*hidden, t, on), absl::OkStatus());
  expect("cache rows", t.cache_rows, truth.CacheRows(layer.hidden64()), fp32 + cache);
  ASSERT_EQ(projections.ProjectQuery(*hidden, t, on), absl::OkStatus());
  // A low-rank query is rounded between its two maps.
  expect("query", t.query, truth.Query(layer.hidden64()), fp32 + 2 * compute);

  const Dense query = layer.Draw(t.all_query);
  ASSERT_EQ(projections.Absorb(0.75f, t, on), absl::OkStatus());
  // The rope columns are not multiplied.
  expect("absorbed", t.absorbed, truth.Absorbed(query, 0.75), fp32 + cache);
  const Dense attended = layer.Draw(t.attended);
  const int first_head = c.setup.share.value_heads.begin - c.setup.attended_heads.begin;
  ASSERT_EQ(projections.ProjectValue(first_head, t, on), absl::OkStatus());
  expect("value", t.value, truth.Value(attended), fp32);
  const Dense value = layer.Draw(t.own_value);
  ASSERT_EQ(projections.ProjectOutput(1.5f, t, on), absl::OkStatus());
  const Dense summand = layer.Fetch(t.summand);
  if (c.setup.share.output_heads.empty()) {
    EXPECT_THAT(summand.values, ::testing::Each(0.0));
  } else {
    expect("summand", t.summand, truth.Output(value, 1.5), fp32);
  }
}

std::vector<MlaShape> Shapes() {
  std::vector<MlaShape> shapes = {TestShape(), TestShape(7), TestShape(), TestShape(33)};
  shapes[1].hidden = 21;
  shapes[1].rope_options.layout = RopeLayout::kInterleaved;
  shapes[2].rope_options.yarn = YarnScaling{40, 64, 32, 1, 0.9, 0.7};
  shapes[2].rope = 12;
  shapes[2].heads = 1;
  shapes[3].heads = 5;
  shapes[3].hidden = 70;
  shapes[3].latent = 36;
  shapes[3].nope = 1;
  shapes[3].value = 17;
  for (MlaShape& shape : shapes) shape.norm_epsilon = 0.3f;  // as large as what it is added to
  return shapes;
}

std::vector<int64_t> Positions(int64_t rows) {
  std::vector<int64_t> positions;
  for (int64_t row = 0; row < rows; ++row) positions.push_back((7 * row + 3) % kPositions);
  return positions;
}

// All of a layer on one rank, in bf16.
ProjectionCase WholeLayer(const MlaShape& shape, int64_t rows) {
  MlaDecoderOptions options;
  options.max_positions = kPositions;
  return {shape, *MlaDecodeSetup::Make(shape, options, 1, 0), DType::kBFloat16, DType::kBFloat16, Positions(rows), {}};
}

TEST_F(CudaProjections, EveryShareMatchesFp64) {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  int turn = 0;
  for (const MlaShape& shape : Shapes()) {
    for (const DecodeMethod method : AllDecodeMethods()) {
      for (const auto& [ranks, rank] : {std::pair(1, 0), {2, 0}, {2, 1}, {4, 2}}) {
        MlaDecoderOptions options;
        options.method = method;
        options.groups = method == DecodeMethod::kTpla ? ranks : 1;
        options.max_positions = kPositions;
        options.cache_dtype = kDTypes[turn % 3];
        const auto setup = MlaDecodeSetup::Make(shape, options, ranks, rank);
        ASSERT_TRUE(setup.ok()) << setup.status();
        ProjectionCase c{shape, *setup, kDTypes[turn / 3 % 3], kDTypes[turn / 9 % 3], Positions(1 + turn % 7), {}};
        if (options.groups > 1 && turn % 2 == 0) c.energy_share = 0.4;
        const std::string name = absl::StrCat("cuda/projections/", turn++);
        SCOPED_TRACE(absl::StrCat(name, ": ", ToString(c.setup.spec), ", rank ", rank, ", query rank ",
                                  shape.query_rank, ", computed in ", std::string(Name(c.compute)), ", stored in ",
                                  std::string(Name(c.checkpoint)), ", ", c.rows(), " rows"));
        Layer layer(c, testing::GeneratorFor(name)(), *device_, stream_);
        ASSERT_EQ(layer.Prepare(), absl::OkStatus());
        ExpectMatchesFp64(layer, c);
      }
    }
  }
}

TEST_F(CudaProjections, AStepWithoutRowsIsNothing) {
  const ProjectionCase c = WholeLayer(TestShape(7), 0);
  Layer layer(c, testing::GeneratorFor("cuda/projections/no rows")(), *device_, stream_);
  ASSERT_EQ(layer.Prepare(), absl::OkStatus());
  ExpectMatchesFp64(layer, c);
}

TEST_F(CudaProjections, CreateNamesWhatItCannotTake) {
  const MlaShape shape = TestShape(7);
  const RandomLayer layer(shape, 1);
  const auto refusal = [&](const MlaShape& of, const MlaWeights& weights, DType compute = DType::kBFloat16) {
    return std::string(Create(of, weights, compute).status().message());
  };
  EXPECT_EQ(refusal(shape, layer.weights), "");
  EXPECT_EQ(refusal(shape, layer.weights, DType::kFloat64),
            "cuda projections: compute is fp64; it must be fp32, bf16 or fp16");
  MlaShape odd = shape;
  odd.rope = 3;
  EXPECT_THAT(refusal(odd, layer.weights), HasSubstr("rope is 3"));
  MlaWeights missing = layer.weights;
  missing.kv_up = {};
  EXPECT_EQ(refusal(shape, missing), "latent attention: kv_up is missing, but the layer needs [33, 8]");
  MlaWeights wide = layer.weights;
  wide.output.columns += 1;
  EXPECT_EQ(refusal(shape, wide), "latent attention: output is [20, 19], but the layer needs [20, 18]");
  MlaWeights both = layer.weights;
  both.query = layer.weights.kv_down;
  EXPECT_EQ(refusal(shape, both), "latent attention: query is given, but query_rank is set");
}

// Errors of the maps themselves: a tensor that is not the step's, or was not rounded.
TEST_F(CudaProjections, CallsNameTheTensorThatDoesNotFit) {
  const ProjectionCase c = WholeLayer(TestShape(), 4);
  Layer layer(c, 1, *device_, stream_);
  ASSERT_EQ(layer.Prepare(), absl::OkStatus());
  const CudaMlaProjections& projections = layer.projections();
  const ProjectionContext on = layer.on();
  EXPECT_EQ(projections.ProjectCacheRows(layer.hidden(), layer.t, on).message(),
            "cuda linear: x is [4, 1, 20] fp32; the map needs [rows, 1, 20] bf16");
  EXPECT_EQ(projections.ProjectQuery(layer.hidden(), layer.t, on).message(),
            "cuda linear: x is [4, 1, 20] fp32; the map needs [rows, 1, 20] bf16");
  auto rounded = projections.RoundHidden(layer.hidden(), layer.t, stream_.handle());
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  rounded->rows = 3;
  EXPECT_EQ(projections.ProjectQuery(*rounded, layer.t, on).message(), "cuda linear: x has 3 rows, y has 4");
  LatentTensors other = layer.t;
  other.latent_query.heads = 2;
  EXPECT_EQ(projections.Absorb(1.0f, other, on).message(),
            "cuda linear: y is [4, 2, 8] fp32; the map needs [rows, 3, 8] fp32");
  other = layer.t;
  other.value.width = 5;
  EXPECT_EQ(projections.ProjectValue(0, other, on).message(),
            "cuda linear: y is [4, 3, 5] fp32; the map needs [rows, 3, 6] fp32");
  other = layer.t;
  other.summand.dtype = DType::kBFloat16;
  EXPECT_EQ(projections.ProjectOutput(1.0f, other, on).message(),
            "cuda linear: y is [4, 1, 20] bf16; the map needs [rows, 1, 20] fp32");
}

// On a GPU of 2 MiB.
TEST_F(CudaProjectionsWithoutMemory, TheErrorNamesTheMatrixAndNothingIsLeftBehind) {
  MlaShape shape = TestShape();
  shape.hidden = 40000;  // kv_down takes 1.92 MB, the queries' weights 4.32 MB
  const RandomLayer layer(shape, 1);
  const int64_t before = device_->FreeBytes().value();
  const Status status = Create(shape, layer.weights, DType::kFloat32).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              ::testing::MatchesRegex("the queries' weights needs 4320000 bytes of device memory, but on GPU 0 .* "
                                      "[0-9]+ of 2097152 are free"));
  ASSERT_EQ(device_->Synchronize(), absl::OkStatus());
  EXPECT_EQ(device_->FreeBytes().value(), before);
}

}  // namespace
}  // namespace tessera
