// Grouped-query attention alone, decoded by one method on GPUs, one per rank.
#include <chrono>
#include <optional>

#include "collectives/agreement.h"
#include "launcher/lm/decode_gpu.h"
#include "launcher/lm/decode_gqa_share.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/base/elapsed.h"
#include "runtime/engine/cuda/decode.h"

namespace tessera::launcher {
namespace {

class CudaGqaSubject : public DecodeSubject {
 public:
  CudaGqaSubject(Communicator& comm, const DecodeLoad& load, const Method& method)
      : comm_(comm), load_(load), share_(load, method, comm.size(), comm.rank()) {}

  Status Prepare() {
    TESSERA_ASSIGN_OR_RETURN(gpu_, DecodeGpu::Open(comm_));
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, Fill(), "filling the cache"));
    CudaDecodeOptions options;
    options.kernel = load_.kernel;
    options.scale = share_.scale();
    options.max_sequences = static_cast<int>(load_.batch);
    options.max_rows_per_sequence = static_cast<int>(load_.query_tokens);
    options.max_pages = cache_->options().pages;
    options.page_tokens = kPageTokens;
    options.expected_rows = share_.local_rows();
    TESSERA_ASSIGN_OR_RETURN(attention_,
                             CudaDecodeAttention::Create(comm_, *gpu_->data, gpu_->device, share_.spec(), options));
    StatusOr<CudaDecodeStep> step = attention_->MakeStep();
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, step.status(), "making the tables of a step"));
    step_.emplace(*std::move(step));
    return absl::OkStatus();
  }

  StatusOr<DecodeCost> Step() override {
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, UploadStep(), "starting a decode step"));
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    gpu_->data->ResetTraffic();
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(
        attention_->Run(View(query_, load_.dtype, share_.query_heads().size(), share_.spec().qk_width),
                        cache_->layer(0), *step_, View(output_, DType::kFloat32, heads(), share_.spec().v_width),
                        View(lse_, DType::kFloat32, heads(), 1), gpu_->stream.handle()));
    TESSERA_RETURN_IF_ERROR(attention_->Synchronize());
    DecodeCost cost;
    cost.seconds = SecondsSince(start);
    cost.split_known = false;
    cost.bytes_received = gpu_->data->traffic().bytes_received;
    cost.cache_bytes_read = cache_bytes();
    cost.attention_flops = share_.flops();
    return cost;
  }

  StatusOr<std::vector<float>> Result() override {
    std::vector<float> output(load_.query_tokens * heads() * share_.spec().v_width);
    const Status fetched = gpu_->Fetch(output.data(), output_, static_cast<int64_t>(output.size() * sizeof(float)));
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, fetched, "fetching the result"));
    return share_.Gather(comm_, output);
  }
  int64_t cache_bytes_per_token() const override { return cache_->bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * share_.local_rows() * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return attention_->kernel_name(); }

 private:
  int heads() const { return share_.output_heads(); }

  // All rows of a step in device memory, dense.
  TensorView View(const DeviceBuffer& buffer, DType dtype, int of_heads, int width) const {
    TensorView view = TensorView::Dense(buffer.data(), dtype, load_.rows(), of_heads, width);
    view.space = MemorySpace::kDevice;
    return view;
  }

  Status Fill() {
    TESSERA_RETURN_IF_ERROR(Validate(share_.spec()));
    const std::vector<std::byte> query = share_.Query();
    TESSERA_ASSIGN_OR_RETURN(query_,
                             gpu_->Upload(query.data(), static_cast<int64_t>(query.size()), "the queries of the step"));
    const int64_t row_heads = load_.rows() * heads();
    const auto number = static_cast<int64_t>(sizeof(float));
    TESSERA_ASSIGN_OR_RETURN(output_, gpu_->Allocate(row_heads * share_.spec().v_width * number, "the step's output"));
    TESSERA_ASSIGN_OR_RETURN(lse_, gpu_->Allocate(row_heads * number, "the step's log-sum-exp"));
    TESSERA_ASSIGN_OR_RETURN(cache_,
                             CudaPagedCache::Create(share_.cache_options(), gpu_->device, gpu_->stream.handle()));
    for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
      const SequenceId local = sequences_.emplace_back(cache_->Start());
      const CacheGrowth growth{local, share_.local_rows()};
      TESSERA_RETURN_IF_ERROR(cache_->Append({&growth, 1}));
      const auto store = [&](int64_t first, const TensorView& keys, const TensorView& values) -> Status {
        TESSERA_RETURN_IF_ERROR(gpu_->StoreRows(*cache_, local, first, cuda::CachePart::kKeys, keys));
        return gpu_->StoreRows(*cache_, local, first, cuda::CachePart::kValues, values);
      };
      TESSERA_RETURN_IF_ERROR(share_.ForEachRows(sequence, store));
    }
    return absl::OkStatus();
  }

  // Waits for the tables to arrive, so that no copy is in the time of a step.
  Status UploadStep() {
    std::vector<DecodeSequence> sequences;
    for (int64_t i = 0; i < load_.batch; ++i) {
      sequences.push_back({i * load_.query_tokens, cache_->pages(sequences_[i]), share_.visible()});
    }
    TESSERA_RETURN_IF_ERROR(step_->Upload(sequences, gpu_->stream.handle()));
    return gpu_->stream.Synchronize("the tables of the step");
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  const GqaShare share_;
  std::unique_ptr<DecodeGpu> gpu_;  // goes after what has memory of its stream
  DeviceBuffer query_;              // [rows, query heads, width] of the load's dtype
  DeviceBuffer output_, lse_;       // [rows, output heads, width] and [rows, output heads] fp32
  std::optional<CudaPagedCache> cache_;
  std::unique_ptr<CudaDecodeAttention> attention_;
  std::optional<CudaDecodeStep> step_;
  std::vector<SequenceId> sequences_;
};

}  // namespace

StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                            const Method& method) {
  auto subject = std::make_unique<CudaGqaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare());
  return subject;
}

}  // namespace tessera::launcher
