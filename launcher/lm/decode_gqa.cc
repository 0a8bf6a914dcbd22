// Grouped-query attention alone, decoded by one method.
#include <chrono>
#include <cstring>
#include <optional>

#include "collectives/agreement.h"
#include "launcher/lm/decode_gqa_share.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/base/elapsed.h"
#include "runtime/engine/cache.h"
#include "runtime/engine/decode.h"

namespace tessera::launcher {
namespace {

class GqaSubject : public DecodeSubject {
 public:
  GqaSubject(Communicator& comm, const DecodeLoad& load, const Method& method)
      : comm_(comm), load_(load), share_(load, method, comm.size(), comm.rank()) {
    output_.resize(load.rows() * share_.output_heads() * share_.spec().v_width);
    lse_.resize(load.rows() * share_.output_heads());
  }

  Status Prepare() {
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, FillCache(), "filling the cache"));
    DecodeOptions options;
    options.kernel = load_.kernel;
    options.threads = load_.threads;
    options.scale = share_.scale();
    TESSERA_ASSIGN_OR_RETURN(attention_, DecodeAttention::Create(comm_, share_.spec(), options));
    return absl::OkStatus();
  }

  StatusOr<DecodeCost> Step() override {
    const DecodeSpec& spec = share_.spec();
    std::vector<DecodeSequence> sequences;
    for (int64_t i = 0; i < load_.batch; ++i) {
      sequences.push_back({i * load_.query_tokens, cache_->pages(sequences_[i]), share_.visible()});
    }
    const int heads = share_.output_heads();
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(attention_->Run(
        TensorView::Dense(query_.data(), load_.dtype, load_.rows(), share_.query_heads().size(), spec.qk_width),
        cache_->layer(0), sequences,
        TensorView::Dense(output_.data(), DType::kFloat32, load_.rows(), heads, spec.v_width),
        TensorView::Dense(lse_.data(), DType::kFloat32, load_.rows(), heads, 1)));
    DecodeCost cost;
    cost.seconds = cost.attention_seconds = SecondsSince(start);
    cost.bytes_received = attention_->stats().traffic.bytes_received;
    cost.cache_bytes_read = cache_bytes();
    cost.attention_flops = share_.flops();
    return cost;
  }

  StatusOr<std::vector<float>> Result() override { return share_.Gather(comm_, output_); }
  int64_t cache_bytes_per_token() const override { return cache_->bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * share_.local_rows() * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return attention_->kernel_name(); }

 private:
  Status FillCache() {
    TESSERA_RETURN_IF_ERROR(Validate(share_.spec()));
    query_ = share_.Query();
    TESSERA_ASSIGN_OR_RETURN(cache_, PagedCache::Create(share_.cache_options()));
    for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
      const SequenceId local = sequences_.emplace_back(cache_->Start());
      const CacheGrowth growth{local, share_.local_rows()};
      TESSERA_RETURN_IF_ERROR(cache_->Append({&growth, 1}));
      const auto store = [&](int64_t first, const TensorView& keys, const TensorView& values) {
        const size_t bytes = keys.width * SizeInBytes(keys.dtype);
        for (int64_t i = 0; i < keys.rows; ++i) {
          for (int head = 0; head < keys.heads; ++head) {
            std::memcpy(cache_->Key(0, local, first + i, head), keys.At(i, head), bytes);
            std::memcpy(cache_->Value(0, local, first + i, head), values.At(i, head), bytes);
          }
        }
        return absl::OkStatus();
      };
      TESSERA_RETURN_IF_ERROR(share_.ForEachRows(sequence, store));
    }
    return absl::OkStatus();
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  const GqaShare share_;
  std::optional<PagedCache> cache_;
  std::unique_ptr<DecodeAttention> attention_;
  std::vector<SequenceId> sequences_;
  std::vector<std::byte> query_;
  std::vector<float> output_, lse_;
};

}  // namespace

StatusOr<std::unique_ptr<DecodeSubject>> MakeGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method) {
  auto subject = std::make_unique<GqaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare());
  return subject;
}

}  // namespace tessera::launcher
