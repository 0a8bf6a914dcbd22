// Grouped-query attention alone, decoded by one method.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "collectives/agreement.h"
#include "launcher/lm/decode_subject_parts.h"
#include "runtime/base/elapsed.h"
#include "runtime/engine/cache.h"
#include "runtime/engine/decode.h"

namespace tessera::launcher {
namespace {

// Queries are given, nothing is projected.
class GqaSubject : public DecodeSubject {
 public:
  GqaSubject(Communicator& comm, const DecodeLoad& load, const Method& method) : comm_(comm), load_(load) {
    const GqaShape& shape = load.shape.gqa();
    spec_.method = method.method;
    spec_.ranks = comm.size();
    spec_.heads = shape.heads;
    spec_.kv_heads = shape.kv_heads;
    spec_.qk_width = spec_.v_width = shape.width;
    spec_.dtype = load.dtype;
    sharding_.axis = spec_.axis();
    sharding_.ranks = comm.size();
    sharding_.block_tokens = kPageTokens;
    sharding_.query_heads = shape.heads;
    kv_heads_ = sharding_.KvHeads(comm.rank(), shape.kv_heads);
    output_.resize(load.rows() * spec_.OutputHeads(comm.rank()).size() * shape.width);
    lse_.resize(load.rows() * spec_.OutputHeads(comm.rank()).size());
  }

  Status Prepare() {
    const auto fill = [&]() -> Status {
      TESSERA_RETURN_IF_ERROR(Validate(spec_));
      const GqaShape& shape = load_.shape.gqa();
      const CacheRowShape row{.latent = false,
                              .kv_heads = shape.kv_heads,
                              .key_width = shape.width,
                              .value_width = shape.width,
                              .dtype = load_.dtype};
      CacheOptions options;
      options.shape = sharding_.LocalShape(comm_.rank(), row);
      options.page_tokens = kPageTokens;
      const int64_t tokens = load_.context_tokens + load_.query_tokens;
      local_rows_ = sharding_.LocalRows(comm_.rank(), tokens);
      options.pages = load_.batch * ((local_rows_ + kPageTokens - 1) / kPageTokens);
      TESSERA_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::Create(options));
      cache_ = std::make_unique<PagedCache>(std::move(cache));
      for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
        TESSERA_RETURN_IF_ERROR(Fill(sequence));
      }
      return absl::OkStatus();
    };
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, fill(), "filling the cache"));
    DecodeOptions options;
    options.kernel = load_.kernel;
    options.threads = load_.threads;
    options.scale = 1.0f / std::sqrt(static_cast<float>(spec_.qk_width));
    TESSERA_ASSIGN_OR_RETURN(attention_, DecodeAttention::Create(comm_, spec_, options));
    return absl::OkStatus();
  }

  StatusOr<DecodeCost> Step() override {
    const HeadRange heads = spec_.QueryHeads(comm_.rank());
    const int output_heads = spec_.OutputHeads(comm_.rank()).size();
    std::vector<DecodeSequence> sequences;
    for (int64_t i = 0; i < load_.batch; ++i) {
      sequences.push_back({i * load_.query_tokens, cache_->pages(sequences_[i]), visible_});
    }
    TESSERA_RETURN_IF_ERROR(WaitForAll(comm_));
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(attention_->Run(
        TensorView::Dense(query_.data(), load_.dtype, load_.rows(), heads.size(), spec_.qk_width), cache_->layer(0),
        sequences, TensorView::Dense(output_.data(), DType::kFloat32, load_.rows(), output_heads, spec_.v_width),
        TensorView::Dense(lse_.data(), DType::kFloat32, load_.rows(), output_heads, 1)));
    DecodeCost cost;
    cost.seconds = cost.attention_seconds = SecondsSince(start);
    cost.bytes_received = attention_->stats().traffic.bytes_received;
    cost.cache_bytes_read = cache_bytes();
    const bool by_tokens = sharding_.axis == CacheAxis::kSequence;
    cost.attention_flops = AttentionFlops(
        load_, by_tokens ? spec_.heads : heads.size(), spec_.qk_width + spec_.v_width,
        by_tokens ? static_cast<double>(local_rows_) / static_cast<double>(load_.context_tokens + load_.query_tokens)
                  : 1);
    return cost;
  }

  StatusOr<std::vector<float>> Result() override {
    const int output_heads = spec_.OutputHeads(comm_.rank()).size();
    const int64_t row = int64_t{output_heads} * spec_.v_width;
    const std::string_view mine(reinterpret_cast<const char*>(output_.data()),
                                load_.query_tokens * row * sizeof(float));
    TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> all, AllGatherText(comm_, mine, "gathering results"));
    if (comm_.rank() != 0) return std::vector<float>();
    std::vector<float> result(load_.query_tokens * spec_.heads * spec_.v_width);
    for (int r = 0; r < comm_.size(); ++r) {
      const HeadRange heads = spec_.OutputHeads(r);
      const size_t bytes = heads.size() * spec_.v_width * sizeof(float);
      for (int64_t t = 0; t < load_.query_tokens; ++t) {
        std::memcpy(result.data() + (t * spec_.heads + heads.begin) * spec_.v_width, all[r].data() + t * bytes, bytes);
      }
    }
    return result;
  }
  int64_t cache_bytes_per_token() const override { return cache_->bytes_per_token_layer(); }
  int64_t cache_bytes() const override { return load_.batch * local_rows_ * cache_bytes_per_token(); }
  std::string_view kernel_name() const override { return attention_->kernel_name(); }

 private:
  // The step's own tokens are in the cache already: the last query_tokens of it.
  Status Fill(int64_t sequence) {
    const int rank = comm_.rank();
    const int64_t tokens = load_.context_tokens + load_.query_tokens;
    const SequenceId local = cache_->Start();
    sequences_.push_back(local);
    const CacheGrowth growth{local, local_rows_};
    TESSERA_RETURN_IF_ERROR(cache_->Append({&growth, 1}));
    const int width = spec_.qk_width;
    const size_t bytes = width * SizeInBytes(load_.dtype);
    for (int64_t first = 0; first < tokens; first += kFillTokens) {
      const int64_t count = std::min(kFillTokens, tokens - first);
      const RowBuffer keys(load_.dtype, count, spec_.kv_heads, width),
          values(load_.dtype, count, spec_.kv_heads, width);
      FillContext(load_, sequence, first, false, keys.view());
      FillContext(load_, sequence, first, true, values.view());
      for (int64_t i = 0; i < count; ++i) {
        if (!sharding_.Holds(rank, first + i)) continue;
        const int64_t row = sharding_.LocalRows(rank, first + i);
        for (int head = kv_heads_.begin; head < kv_heads_.end; ++head) {
          std::memcpy(cache_->Key(0, local, row, head - kv_heads_.begin), keys.view().At(i, head), bytes);
          std::memcpy(cache_->Value(0, local, row, head - kv_heads_.begin), values.view().At(i, head), bytes);
        }
      }
    }
    if (sequence == 0) {
      for (int64_t t = 1; t <= load_.query_tokens; ++t) {
        visible_.push_back({0, sharding_.LocalRows(rank, load_.context_tokens + t)});
      }
    }
    const HeadRange heads = spec_.QueryHeads(rank);
    const std::vector<float> input = StepInput(load_, sequence);
    const size_t size = SizeInBytes(load_.dtype);
    for (int64_t t = 0; t < load_.query_tokens; ++t) {
      for (int i = 0; i < heads.size() * width; ++i) {
        query_.resize(query_.size() + size);
        StoreFromFloat(query_.data(), load_.dtype, static_cast<int64_t>(query_.size() / size) - 1,
                       input[(t * spec_.heads + heads.begin) * width + i]);
      }
    }
    return absl::OkStatus();
  }

  Communicator& comm_;
  const DecodeLoad& load_;
  DecodeSpec spec_;
  CacheSharding sharding_;
  HeadRange kv_heads_;
  std::unique_ptr<PagedCache> cache_;
  std::unique_ptr<DecodeAttention> attention_;
  std::vector<SequenceId> sequences_;
  std::vector<Range> visible_;
  std::vector<std::byte> query_;
  std::vector<float> output_, lse_;
  int64_t local_rows_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<DecodeSubject>> MakeGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method) {
  auto subject = std::make_unique<GqaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare());
  return subject;
}

}  // namespace tessera::launcher
