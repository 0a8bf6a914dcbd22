// One layer of latent attention with its projections, decoded by one method on GPUs, one per rank.
#include <algorithm>
#include <chrono>
#include <optional>

#include "collectives/agreement.h"
#include "collectives/nccl/communicator.h"
#include "kernels/cuda/row_ops.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/base/elapsed.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
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
    TESSERA_ASSIGN_OR_RETURN(device_, OpenDeviceOfRank(comm_));
    TESSERA_ASSIGN_OR_RETURN(data_, MakeNcclCommunicator(comm_, *device_));
    StatusOr<CudaStream> stream = CudaStream::Create(*device_);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, stream.status(), "creating a stream"));
    stream_ = *std::move(stream);
    TESSERA_ASSIGN_OR_RETURN(
        decoder_, CudaMlaDecoder::Create(comm_, *data_, *device_, load_.shape.mla(), options_, stream_.handle()));
    return AgreeOnStatus(comm_, Fill(weights), "filling the cache");
  }

  StatusOr<DecodeCost> Step() override {
    std::vector<StepTokens> step;
    for (SequenceId sequence : sequences_) step.push_back({sequence, load_.query_tokens});
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, decoder_->BeginStep(step), "starting a decode step"));
    TESSERA_RETURN_IF_ERROR(stream_.Synchronize("the tables of the step"));
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    data_->ResetTraffic();
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(
        decoder_->Attend(0, reinterpret_cast<const float*>(hidden_.data()), reinterpret_cast<float*>(out_.data())));
    TESSERA_RETURN_IF_ERROR(decoder_->Synchronize());
    DecodeCost cost;
    cost.seconds = SecondsSince(start);
    cost.split_known = false;
    cost.bytes_received = data_->traffic().bytes_received;
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
    TESSERA_RETURN_IF_ERROR(
        CopyAsync(result.data(), out_.data(), static_cast<int64_t>(result.size() * sizeof(float)), stream_.handle()));
    TESSERA_RETURN_IF_ERROR(stream_.Synchronize("copying the result from the GPU"));
    return result;
  }
  int64_t cache_bytes_per_token() const override { return decoder_->cache().bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * local_rows_ * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return decoder_->kernel_name(); }

 private:
  StatusOr<DeviceBuffer> Allocate(int64_t bytes, std::string_view what) const {
    return DeviceBuffer::Allocate(*device_, bytes, what, stream_.handle());
  }

  Status Fill(const RandomMlaWeights& weights) {
    TESSERA_RETURN_IF_ERROR(decoder_->AddLayer(weights.view()));
    const std::vector<float> hidden = MlaStepInput(load_);
    const auto bytes = static_cast<int64_t>(hidden.size() * sizeof(float));
    TESSERA_ASSIGN_OR_RETURN(hidden_, Allocate(bytes, "the step's input"));
    TESSERA_ASSIGN_OR_RETURN(out_, Allocate(bytes, "the step's output"));
    TESSERA_RETURN_IF_ERROR(CopyAsync(hidden_.data(), hidden.data(), bytes, stream_.handle()));
    TESSERA_RETURN_IF_ERROR(stream_.Synchronize("copying the step's input to the GPU"));
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
    const auto store = [&](int64_t first, const TensorView& rows) -> Status {
      std::vector<cuda::CacheSlot> slots;
      for (int64_t i = 0; i < rows.rows; ++i) slots.push_back(cache.SlotOf(local, first + i));
      const auto slot_bytes = static_cast<int64_t>(slots.size() * sizeof(cuda::CacheSlot));
      TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_rows, Allocate(rows.bytes(), "rows of the context"));
      TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_slots, Allocate(slot_bytes, "places of the context"));
      TESSERA_RETURN_IF_ERROR(CopyAsync(device_rows.data(), rows.data, rows.bytes(), stream_.handle()));
      TESSERA_RETURN_IF_ERROR(CopyAsync(device_slots.data(), slots.data(), slot_bytes, stream_.handle()));
      TensorView view = rows;
      view.data = device_rows.data();
      view.space = MemorySpace::kDevice;
      TESSERA_RETURN_IF_ERROR(cuda::AppendToCache(view, reinterpret_cast<const cuda::CacheSlot*>(device_slots.data()),
                                                  cache.layer(0), cuda::CachePart::kKeys, stream_.handle()));
      return stream_.Synchronize("filling the cache");
    };
    TESSERA_RETURN_IF_ERROR(ForEachMlaRows(load_, sequence, decoder_->sharding(), comm_.rank(), store));
    return decoder_->Adopt(sequences_[sequence], load_.context_tokens);
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  CudaMlaDecoderOptions options_;
  std::optional<CudaDevice> device_;
  CudaStream stream_;  // goes after what has memory of it
  std::unique_ptr<StreamCommunicator> data_;
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
