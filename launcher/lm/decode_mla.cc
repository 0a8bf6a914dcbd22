// One layer of latent attention with its projections, decoded by one method.
#include <cstring>

#include "collectives/agreement.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera::launcher {
namespace {

class MlaSubject : public DecodeSubject {
 public:
  MlaSubject(Communicator& comm, const DecodeLoad& load, const Method& method)
      : comm_(comm), load_(load), options_(MlaOptionsFor(load, method, comm.size())), hidden_(MlaStepInput(load)) {
    out_.resize(load.rows() * load.shape.mla().hidden);
  }

  Status Prepare(const RandomMlaWeights& weights) {
    TESSERA_ASSIGN_OR_RETURN(decoder_, MlaDecoder::Create(comm_, load_.shape.mla(), options_));
    const auto fill = [&]() -> Status {
      TESSERA_RETURN_IF_ERROR(decoder_->AddLayer(weights.view()));
      for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
        sequences_.push_back(decoder_->Start());
        TESSERA_RETURN_IF_ERROR(Fill(sequence));
      }
      return absl::OkStatus();
    };
    return AgreeOnStatus(comm_, fill(), "filling the cache");
  }

  StatusOr<DecodeCost> Step() override {
    std::vector<StepTokens> step;
    for (SequenceId sequence : sequences_) step.push_back({sequence, load_.query_tokens});
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, decoder_->BeginStep(step), "starting a decode step"));
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    TESSERA_RETURN_IF_ERROR(decoder_->Attend(0, hidden_.data(), out_.data()));
    for (SequenceId sequence : sequences_) {
      TESSERA_RETURN_IF_ERROR(decoder_->Truncate(sequence, load_.context_tokens));
    }
    const MlaDecodeStats& stats = decoder_->stats();
    DecodeCost cost{stats.seconds,
                    stats.projection_seconds,
                    stats.attention_seconds,
                    stats.slice_seconds,
                    stats.all_reduce_seconds,
                    stats.attention_bytes + stats.slice_bytes + stats.all_reduce_bytes,
                    cache_bytes(),
                    0};
    cost.attention_flops = MlaAttentionFlops(load_, options_, decoder_->sharding(), comm_.rank(), local_rows_);
    return cost;
  }

  StatusOr<std::vector<float>> Result() override {
    if (comm_.rank() != 0) return std::vector<float>();
    return std::vector<float>(out_.begin(), out_.begin() + load_.query_tokens * load_.shape.mla().hidden);
  }
  int64_t cache_bytes_per_token() const override { return decoder_->cache().bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * local_rows_ * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return decoder_->kernel_name(); }

 private:
  Status Fill(int64_t sequence) {
    const CacheSharding& sharding = decoder_->sharding();
    local_rows_ = sharding.LocalRows(comm_.rank(), load_.context_tokens);
    const SequenceId local = decoder_->LocalSequence(sequences_[sequence]);
    const CacheGrowth growth{local, local_rows_};
    TESSERA_RETURN_IF_ERROR(decoder_->cache().Append({&growth, 1}));
    const auto store = [&](int64_t first, const TensorView& rows) {
      for (int64_t i = 0; i < rows.rows; ++i) {
        std::memcpy(decoder_->cache().Key(0, local, first + i), rows.At(i, 0), rows.bytes() / rows.rows);
      }
      return absl::OkStatus();
    };
    TESSERA_RETURN_IF_ERROR(ForEachMlaRows(load_, sequence, sharding, comm_.rank(), store));
    return decoder_->Adopt(sequences_[sequence], load_.context_tokens);
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  const MlaDecoderOptions options_;
  std::unique_ptr<MlaDecoder> decoder_;
  std::vector<SequenceId> sequences_;
  const std::vector<float> hidden_;
  std::vector<float> out_;
  int64_t local_rows_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<DecodeSubject>> MakeMlaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method, const RandomMlaWeights& weights) {
  auto subject = std::make_unique<MlaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare(weights));
  return subject;
}

}  // namespace tessera::launcher
