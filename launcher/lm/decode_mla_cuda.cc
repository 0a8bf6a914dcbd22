// One layer of latent attention with its projections, decoded by one method on GPUs, one per rank.
#include <chrono>

#include "collectives/agreement.h"
#include "launcher/lm/decode_gpu.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/base/elapsed.h"
#include "runtime/latent/cuda/mla_decoder.h"

namespace tessera::launcher {
namespace {

class CudaMlaSubject : public DecodeSubject {
 public:
  CudaMlaSubject(Communicator& comm, const DecodeLoad& load, const Method& method) : comm_(comm), load_(load) {
    options_.decoder = MlaOptionsFor(load, method, comm.size());
    options_.max_sequences = static_cast<int>(load.batch);
    options_.max_tokens_per_sequence = static_cast<int>(load.query_tokens);
    options_.expected_tokens = options_.decoder.max_positions;
  }

  Status Prepare(const RandomMlaWeights& weights) {
    TESSERA_ASSIGN_OR_RETURN(gpu_, DecodeGpu::Open(comm_));
    TESSERA_ASSIGN_OR_RETURN(decoder_, CudaMlaDecoder::Create(comm_, *gpu_->data, gpu_->device, load_.shape.mla(),
                                                              options_, gpu_->stream.handle()));
    return AgreeOnStatus(comm_, Fill(weights), "filling the cache");
  }

  StatusOr<DecodeCost> Step() override {
    std::vector<StepTokens> step;
    for (SequenceId sequence : sequences_) step.push_back({sequence, load_.query_tokens});
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, decoder_->BeginStep(step), "starting a decode step"));
    TESSERA_RETURN_IF_ERROR(gpu_->stream.Synchronize("the tables of the step"));
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    gpu_->data->ResetTraffic();
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(
        decoder_->Attend(0, reinterpret_cast<const float*>(hidden_.data()), reinterpret_cast<float*>(out_.data())));
    TESSERA_RETURN_IF_ERROR(decoder_->Synchronize());
    DecodeCost cost;
    cost.seconds = SecondsSince(start);
    cost.split_known = false;
    cost.bytes_received = gpu_->data->traffic().bytes_received;
    cost.cache_bytes_read = cache_bytes();
    cost.attention_flops = MlaAttentionFlops(load_, options_.decoder, decoder_->sharding(), comm_.rank(), local_rows_);
    for (SequenceId sequence : sequences_) {
      TESSERA_RETURN_IF_ERROR(decoder_->Truncate(sequence, load_.context_tokens));
    }
    return cost;
  }

  StatusOr<std::vector<float>> Result() override {
    if (comm_.rank() != 0) return std::vector<float>();
    std::vector<float> result(load_.query_tokens * load_.shape.mla().hidden);
    TESSERA_RETURN_IF_ERROR(gpu_->Fetch(result.data(), out_, static_cast<int64_t>(result.size() * sizeof(float))));
    return result;
  }
  int64_t cache_bytes_per_token() const override { return decoder_->cache().bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * local_rows_ * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return decoder_->kernel_name(); }

 private:
  Status Fill(const RandomMlaWeights& weights) {
    TESSERA_RETURN_IF_ERROR(decoder_->AddLayer(weights.view()));
    const std::vector<float> hidden = MlaStepInput(load_);
    const auto bytes = static_cast<int64_t>(hidden.size() * sizeof(float));
    TESSERA_ASSIGN_OR_RETURN(hidden_, gpu_->Upload(hidden.data(), bytes, "the step's input"));
    TESSERA_ASSIGN_OR_RETURN(out_, gpu_->Allocate(bytes, "the step's output"));
    local_rows_ = decoder_->sharding().LocalRows(comm_.rank(), load_.context_tokens);
    for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
      sequences_.push_back(decoder_->Start());
      TESSERA_RETURN_IF_ERROR(FillContextOf(sequence));
    }
    return absl::OkStatus();
  }

  Status FillContextOf(int64_t sequence) {
    CudaPagedCache& cache = decoder_->cache();
    const SequenceId local = decoder_->LocalSequence(sequences_[sequence]);
    const CacheGrowth growth{local, local_rows_};
    TESSERA_RETURN_IF_ERROR(cache.Append({&growth, 1}));
    const auto store = [&](int64_t first, const TensorView& rows) {
      return gpu_->StoreRows(cache, local, first, cuda::CachePart::kKeys, rows);
    };
    TESSERA_RETURN_IF_ERROR(ForEachMlaRows(load_, sequence, decoder_->sharding(), comm_.rank(), store));
    return decoder_->Adopt(sequences_[sequence], load_.context_tokens);
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  CudaMlaDecoderOptions options_;
  std::unique_ptr<DecodeGpu> gpu_;  // goes after what has memory of its stream
  std::unique_ptr<CudaMlaDecoder> decoder_;
  DeviceBuffer hidden_, out_;  // [rows, D] fp32
  std::vector<SequenceId> sequences_;
  int64_t local_rows_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaMlaSubject(Communicator& comm, const DecodeLoad& load,
                                                            const Method& method, const RandomMlaWeights& weights) {
  auto subject = std::make_unique<CudaMlaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare(weights));
  return subject;
}

}  // namespace tessera::launcher
