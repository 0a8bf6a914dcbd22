#include "runtime/latent/cuda/mla_decoder.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "collectives/agreement.h"
#include "kernels/cuda/row_ops.h"
#include "runtime/device/cuda/range.h"
#include "runtime/engine/cuda/decode.h"
#include "runtime/latent/cuda/layer_tensors.h"
#include "runtime/latent/cuda/projections.h"
#include "runtime/latent/cuda/slice_exchange.h"
#include "runtime/latent/cuda/step_tables.h"
#include "runtime/latent/cuda/upload.h"

namespace tessera {
namespace {

// Page numbers of the sequences of one step at most; forks count shared pages each.
int64_t MostPages(const CudaMlaDecoderOptions& options, const MlaDecodeSetup& setup, int rank) {
  const int64_t rows = setup.sharding.LocalRows(rank, options.decoder.max_positions);
  const int64_t each = (rows + setup.cache.page_tokens - 1) / setup.cache.page_tokens;
  return options.max_sequences * std::min(each, setup.cache.pages);
}

CudaDecodeOptions AttentionOptions(const MlaShape& shape, const CudaMlaDecoderOptions& options,
                                   const MlaDecodeSetup& setup, int rank) {
  CudaDecodeOptions attention;
  attention.kernel = options.decoder.kernel;
  attention.scale = shape.Scale();
  attention.value_in_key = true;
  attention.max_sequences = options.max_sequences;
  attention.max_rows_per_sequence = options.max_tokens_per_sequence;
  attention.max_pages = MostPages(options, setup, rank);
  attention.page_tokens = setup.cache.page_tokens;
  attention.expected_rows = setup.sharding.LocalRows(rank, options.expected_tokens);
  return attention;
}

}  // namespace

struct CudaMlaDecoder::State {
  struct Layer {
    CudaMlaProjections maps;
    SliceFactors factors;
  };
  State(Communicator& control, StreamCommunicator& data, const CudaDevice& device, const MlaShape& shape,
        const CudaMlaDecoderOptions& options, const MlaDecodeSetup& setup, CudaPagedCache cache, CUstream_st* stream)
      : data(data),
        device(device),
        shape(shape),
        options(options),
        setup(setup),
        stream(stream),
        slices(setup.spec, data),
        sequences(control, setup.sharding, options.decoder.max_positions, std::move(cache),
                  {options.max_sequences, options.max_tokens_per_sequence}) {}

  int64_t MaxRows() const { return int64_t{options.max_sequences} * options.max_tokens_per_sequence; }
  int64_t PlaceTensors(int64_t rows) {
    return LatentTensors::Place(shape, setup, options.decoder.compute, rows,
                                slices.PackedBytes(rows, shape.qk_width(), shape.value), memory.data(), tensors);
  }
  Status Prepare();
  Status UploadStep();
  Status AttendCache(int layer);

  StreamCommunicator& data;
  const CudaDevice device;
  const MlaShape shape;
  const CudaMlaDecoderOptions options;
  const MlaDecodeSetup setup;
  CUstream_st* const stream;
  CudaSliceExchange slices;
  LatentSequences<CudaPagedCache> sequences;
  std::unique_ptr<CudaDecodeAttention> attention;
  std::optional<CudaDecodeStep> step;
  std::optional<LatentStepTables> tables;
  DeviceBuffer workspace, rope_table, memory;
  std::optional<cuda::Cublas> cublas;
  LatentTensors tensors;  // of the step, in `memory`
  bool uploaded = false;  // the step's tables
  std::vector<Layer> layers;
};

Status CudaMlaDecoder::State::Prepare() {
  TESSERA_ASSIGN_OR_RETURN(step, attention->MakeStep());
  TESSERA_ASSIGN_OR_RETURN(tables, LatentStepTables::Create(device, MaxRows(), stream));
  const int64_t workspace_bytes = cuda::Cublas::WorkspaceBytes(device.capability().major);
  TESSERA_ASSIGN_OR_RETURN(workspace,
                           DeviceBuffer::Allocate(device, workspace_bytes, "the workspace of cuBLAS", stream));
  TESSERA_ASSIGN_OR_RETURN(cublas, cuda::Cublas::Create(workspace.data(), workspace_bytes));
  TESSERA_ASSIGN_OR_RETURN(
      memory, DeviceBuffer::Allocate(device, PlaceTensors(MaxRows()), "the tensors of a latent decode step", stream));
  DeviceUploads uploads(device, stream);
  TESSERA_ASSIGN_OR_RETURN(
      rope_table, uploads.Add(cuda::RopeTableValues(shape.rope_options, shape.rope, options.decoder.max_positions),
                              "the table of RoPE"));
  return uploads.Finish();
}

Status CudaMlaDecoder::State::UploadStep() {
  std::vector<cuda::CacheSlot> slots;
  for (const auto& [local, row] : sequences.new_rows()) {
    slots.push_back(row < 0 ? cuda::CacheSlot{-1, 0} : sequences.cache().SlotOf(local, row));
  }
  TESSERA_RETURN_IF_ERROR(tables->Upload(sequences.positions(), slots));
  TESSERA_RETURN_IF_ERROR(step->Upload(sequences.Attended(), stream));
  PlaceTensors(sequences.step_rows());
  return absl::OkStatus();
}

Status CudaMlaDecoder::State::AttendCache(int layer) {
  const CacheLayer cache = sequences.cache().layer(layer);
  TESSERA_RETURN_IF_ERROR(
      cuda::AppendToCache(tensors.cache_rows, tables->slots(), cache, cuda::CachePart::kKeys, stream));
  return attention->Run(tensors.absorbed, cache, *step, tensors.attended, tensors.lse, stream);
}

CudaMlaDecoder::CudaMlaDecoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaMlaDecoder::~CudaMlaDecoder() = default;

StatusOr<std::unique_ptr<CudaMlaDecoder>> CudaMlaDecoder::Create(Communicator& control, StreamCommunicator& data,
                                                                 const CudaDevice& device, const MlaShape& shape,
                                                                 const CudaMlaDecoderOptions& options,
                                                                 CUstream_st* stream) {
  TESSERA_ASSIGN_OR_RETURN(const MlaDecodeSetup setup,
                           MlaDecodeSetup::Make(shape, options.decoder, control.size(), control.rank()));
  StatusOr<CudaPagedCache> cache = CudaPagedCache::Create(setup.cache, device, stream);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, cache.status(), "creating the cache"));
  auto state = std::make_unique<State>(control, data, device, shape, options, setup, *std::move(cache), stream);
  TESSERA_ASSIGN_OR_RETURN(state->attention,
                           CudaDecodeAttention::Create(control, data, device, setup.spec,
                                                       AttentionOptions(shape, options, setup, control.rank())));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, state->Prepare(), "preparing to decode"));
  return std::unique_ptr<CudaMlaDecoder>(new CudaMlaDecoder(std::move(state)));
}

Status CudaMlaDecoder::AddLayer(const MlaWeights& weights, const TplaFactors& factors) {
  State& state = *state_;
  const MlaDecoderOptions& options = state.options.decoder;
  if (static_cast<int>(state.layers.size()) == options.layers) {
    return absl::FailedPreconditionError(absl::StrCat("the decoder has its ", options.layers, " layers already"));
  }
  TESSERA_ASSIGN_OR_RETURN(const SliceFactors own, state.setup.FactorsOf(factors, state.data.rank()));
  DeviceUploads uploads(state.device, state.stream);
  TESSERA_ASSIGN_OR_RETURN(
      CudaMlaProjections maps,
      CudaMlaProjections::Create(state.shape, weights, state.setup.share, options.compute, own.energy_share, uploads));
  TESSERA_RETURN_IF_ERROR(uploads.Finish());
  state.layers.push_back({std::move(maps), own});
  return absl::OkStatus();
}

Status CudaMlaDecoder::BeginStep(std::span<const StepTokens> step) {
  state_->uploaded = false;
  TESSERA_RETURN_IF_ERROR(state_->sequences.BeginStep(step));
  TESSERA_RETURN_IF_ERROR(state_->UploadStep());
  state_->uploaded = true;
  return absl::OkStatus();
}

Status CudaMlaDecoder::Attend(int layer, const float* hidden, float* out) {
  State& state = *state_;
  if (layer < 0 || layer >= static_cast<int>(state.layers.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": there are ", state.layers.size()));
  }
  if (!state.sequences.in_step() || !state.uploaded)
    return absl::FailedPreconditionError("Attend needs BeginStep first");
  const int64_t rows = state.sequences.step_rows();
  if (rows == 0) return absl::OkStatus();
  const ProfilerRange range("tessera latent layer");
  const auto& [maps, factors] = state.layers[layer];
  const LatentTensors& t = state.tensors;
  const ProjectionContext on{*state.cublas, reinterpret_cast<const float*>(state.rope_table.data()),
                             state.tables->positions(), state.stream};
  ConstTensorView input = ConstTensorView::Dense(hidden, DType::kFloat32, rows, 1, state.shape.hidden);
  input.space = MemorySpace::kDevice;
  TESSERA_ASSIGN_OR_RETURN(input, maps.RoundHidden(input, t, state.stream));
  TESSERA_RETURN_IF_ERROR(maps.ProjectCacheRows(input, t, on));
  TESSERA_RETURN_IF_ERROR(maps.ProjectQuery(input, t, on));
  TESSERA_RETURN_IF_ERROR(state.slices.Gather(t.query, t.packed, t.all_query, state.stream));
  TESSERA_RETURN_IF_ERROR(maps.Absorb(factors.softmax_multiplier, t, on));
  TESSERA_RETURN_IF_ERROR(state.AttendCache(layer));
  const int first_value = state.setup.share.value_heads.begin - state.setup.attended_heads.begin;
  TESSERA_RETURN_IF_ERROR(maps.ProjectValue(first_value, t, on));
  TESSERA_RETURN_IF_ERROR(state.slices.SumOwn(t.value, t.packed, t.own_value, state.stream));
  TESSERA_RETURN_IF_ERROR(maps.ProjectOutput(factors.out_scale, t, on));
  const auto count = static_cast<size_t>(rows * state.shape.hidden);
  return state.data.AllReduceSum({static_cast<const float*>(t.summand.data), count}, {out, count}, state.stream);
}

Status CudaMlaDecoder::Synchronize() {
  // The attention knows the plan step; what follows it has none.
  TESSERA_RETURN_IF_ERROR(state_->attention->Synchronize());
  return state_->data.Wait(state_->stream, "a latent decode step");
}

SequenceId CudaMlaDecoder::Start() {
  return state_->sequences.Start();
}
StatusOr<SequenceId> CudaMlaDecoder::Fork(SequenceId parent, int64_t tokens) {
  return state_->sequences.Fork(parent, tokens);
}
Status CudaMlaDecoder::Truncate(SequenceId sequence, int64_t tokens) {
  return state_->sequences.Truncate(sequence, tokens);
}
Status CudaMlaDecoder::Release(SequenceId sequence) {
  return state_->sequences.Release(sequence);
}
int64_t CudaMlaDecoder::tokens(SequenceId sequence) const {
  return state_->sequences.tokens(sequence);
}
int64_t CudaMlaDecoder::step_rows() const {
  return state_->sequences.step_rows();
}
std::span<const int64_t> CudaMlaDecoder::step_positions() const {
  return state_->sequences.positions();
}
const MlaShape& CudaMlaDecoder::shape() const {
  return state_->shape;
}
const CacheSharding& CudaMlaDecoder::sharding() const {
  return state_->setup.sharding;
}
CudaPagedCache& CudaMlaDecoder::cache() {
  return state_->sequences.cache();
}
SequenceId CudaMlaDecoder::LocalSequence(SequenceId sequence) const {
  return state_->sequences.Local(sequence);
}
Status CudaMlaDecoder::Adopt(SequenceId sequence, int64_t tokens) {
  return state_->sequences.Adopt(sequence, tokens);
}
std::string_view CudaMlaDecoder::kernel_name() const {
  return state_->attention->kernel_name();
}
int64_t CudaMlaDecoder::weight_bytes() const {
  int64_t bytes = 0;
  for (const State::Layer& layer : state_->layers) bytes += layer.maps.weight_bytes();
  return bytes;
}

}  // namespace tessera
