// One layer of latent attention with its projections, decoded by one method.
#include <algorithm>
#include <cstring>

#include "collectives/agreement.h"
#include "launcher/lm/decode_runner.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera::launcher {
namespace {

class MlaSubject : public DecodeSubject {
 public:
  MlaSubject(Communicator& comm, const DecodeLoad& load, const Method& method) : comm_(comm), load_(load) {
    options_.method = method.method;
    options_.groups = method.groups;
    options_.block_tokens = kPageTokens;
    options_.page_tokens = kPageTokens;
    options_.cache_dtype = load.dtype;
    options_.compute = ProjectionType(load.dtype);
    options_.max_positions = load.context_tokens + load.query_tokens;
    options_.kernel = load.kernel;
    options_.threads = load.threads;
    options_.pages = PagesFor(options_, comm.size(), load.batch, options_.max_positions);
    out_.resize(load.rows() * load.shape.mla().hidden);
    for (int64_t sequence = 0; sequence < load.batch; ++sequence) {
      const std::vector<float> rows = StepInput(load, sequence);
      hidden_.insert(hidden_.end(), rows.begin(), rows.end());
    }
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
    // What this rank's kernel computes: heads that meet its rows, in its columns.
    const bool by_tokens = decoder_->sharding().axis == CacheAxis::kSequence;
    const DecodeSpec spec{
        .method = options_.method, .ranks = comm_.size(), .groups = options_.groups, .heads = load_.shape.heads()};
    const double heads = by_tokens ? load_.shape.heads() : spec.QueryHeads(comm_.rank()).size();
    const auto columns =
        static_cast<double>(decoder_->sharding().LatentColumns(comm_.rank(), load_.shape.mla().latent).size());
    const double share = by_tokens ? static_cast<double>(local_rows_) / static_cast<double>(load_.context_tokens) : 1;
    cost.attention_flops = AttentionFlops(load_, heads, 2 * columns + load_.shape.mla().rope, share);
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
    const int rank = comm_.rank();
    const MlaShape& shape = load_.shape.mla();
    local_rows_ = sharding.LocalRows(rank, load_.context_tokens);
    const SequenceId local = decoder_->LocalSequence(sequences_[sequence]);
    const CacheGrowth growth{local, local_rows_};
    TESSERA_RETURN_IF_ERROR(decoder_->cache().Append({&growth, 1}));
    const Range columns = sharding.LatentColumns(rank, shape.latent);
    const auto size = static_cast<int64_t>(SizeInBytes(load_.dtype));
    for (int64_t first = 0; first < load_.context_tokens; first += kFillTokens) {
      const int64_t count = std::min(kFillTokens, load_.context_tokens - first);
      const RowBuffer made(load_.dtype, count, 1, shape.cache_width());
      FillContext(load_, sequence, first, false, made.view());
      for (int64_t i = 0; i < count; ++i) {
        if (!sharding.Holds(rank, first + i)) continue;
        std::byte* row = decoder_->cache().Key(0, local, sharding.LocalRows(rank, first + i));
        const auto* from = static_cast<const std::byte*>(made.view().At(i, 0));
        std::memcpy(row, from + columns.begin * size, columns.size() * size);
        std::memcpy(row + columns.size() * size, from + shape.latent * size, shape.rope * size);
      }
    }
    return decoder_->Adopt(sequences_[sequence], load_.context_tokens);
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  MlaDecoderOptions options_;
  std::unique_ptr<MlaDecoder> decoder_;
  std::vector<SequenceId> sequences_;
  std::vector<float> hidden_, out_;
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
