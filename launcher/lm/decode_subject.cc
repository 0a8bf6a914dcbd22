#include "launcher/lm/decode_subject.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "launcher/agreement.h"
#include "runtime/base/counter_random.h"
#include "runtime/engine/cache.h"
#include "runtime/engine/decode.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera::launcher {
namespace {

using Clock = std::chrono::steady_clock;

// Tensors of the random generator.
enum : uint8_t { kContextKey = 0, kContextValue = 1, kStepInput = 2, kStepKey = 3, kStepValue = 4, kFirstWeight = 16 };

constexpr int64_t kFillTokens = 1024;  // context rows made at a time
constexpr int kPageTokens = 64;

uint64_t SeedOf(const DecodeLoad& load, int64_t sequence) {
  return load.seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(sequence);
}

// Dense rows of the load's dtype.
class Rows {
 public:
  Rows(DType dtype, int64_t rows, int heads, int width)
      : bytes_(rows * heads * width * SizeInBytes(dtype)),
        view_(TensorView::Dense(bytes_.data(), dtype, rows, heads, width)) {}
  const TensorView& view() const { return view_; }

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

// Attention of the whole layer: every head meets every row.
double AttentionFlops(const DecodeLoad& load, double heads, double widths, double local_share) {
  const double keys = static_cast<double>(load.context_tokens) + (static_cast<double>(load.query_tokens) + 1) / 2;
  return 2 * heads * widths * keys * static_cast<double>(load.rows()) * local_share;
}

Status WaitForAll(Communicator& comm) {
  TESSERA_ASSIGN_OR_RETURN(Request barrier, comm.Barrier());
  return Wait(comm, barrier, "the others to start");
}

class MlaSubject : public DecodeSubject {
 public:
  MlaSubject(Communicator& comm, const DecodeLoad& load, const Method& method) : comm_(comm), load_(load) {
    options_.method = method.method;
    options_.groups = method.groups;
    options_.block_tokens = kPageTokens;
    options_.page_tokens = kPageTokens;
    options_.cache_dtype = load.dtype;
    options_.compute = load.dtype == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
    options_.max_positions = load.context_tokens + load.query_tokens;
    options_.kernel = load.kernel;
    options_.threads = load.threads;
    options_.pages = load.batch * ((options_.max_positions + kPageTokens - 1) / kPageTokens);
    if (DecodeSpec{.method = method.method}.axis() == CacheAxis::kSequence) {
      const int64_t round = int64_t{comm.size()} * kPageTokens;
      options_.pages = load.batch * ((options_.max_positions + round - 1) / round);
    }
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
                    stats.all_reduce_seconds,
                    stats.attention_bytes + stats.all_reduce_bytes,
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
      const Rows made(load_.dtype, count, 1, shape.cache_width());
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

// Attention alone: queries are given, nothing is projected.
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
    const auto start = Clock::now();
    TESSERA_RETURN_IF_ERROR(attention_->Run(
        TensorView::Dense(query_.data(), load_.dtype, load_.rows(), heads.size(), spec_.qk_width), cache_->layer(0),
        sequences, TensorView::Dense(output_.data(), DType::kFloat32, load_.rows(), output_heads, spec_.v_width),
        TensorView::Dense(lse_.data(), DType::kFloat32, load_.rows(), output_heads, 1)));
    DecodeCost cost;
    cost.seconds = cost.attention_seconds = std::chrono::duration<double>(Clock::now() - start).count();
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
      const Rows keys(load_.dtype, count, spec_.kv_heads, width), values(load_.dtype, count, spec_.kv_heads, width);
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

RandomMlaWeights::RandomMlaWeights(const MlaShape& shape, uint64_t seed) {
  storage_.reserve(8);
  const auto make = [&](int64_t rows, int64_t columns) {
    const auto tensor = static_cast<uint8_t>(kFirstWeight + storage_.size());
    auto& bytes = storage_.emplace_back(rows * columns * 2);
    const Segment all{0, rows, 1};
    FillNormal(seed, tensor, {&all, 1},
               TensorView::Dense(bytes.data(), DType::kBFloat16, rows, 1, static_cast<int>(columns)));
    // A power of two, so that scaling rounds nothing.
    const float scale = std::exp2(-std::round(std::log2(std::sqrt(static_cast<float>(columns)))));
    for (int64_t i = 0; i < rows * columns; ++i) {
      StoreFromFloat(bytes.data(), DType::kBFloat16, i, LoadAsFloat(bytes.data(), DType::kBFloat16, i) * scale);
    }
    return MatrixView{bytes.data(), DType::kBFloat16, rows, columns};
  };
  const auto ones = [&](int64_t count) {
    auto& bytes = storage_.emplace_back(count * 2);
    for (int64_t i = 0; i < count; ++i) StoreFromFloat(bytes.data(), DType::kBFloat16, i, 1.0f);
    return MatrixView{bytes.data(), DType::kBFloat16, count, 1};
  };
  const int64_t query_rows = int64_t{shape.heads} * shape.qk_width();
  if (shape.query_rank > 0) {
    view_.query_down = make(shape.query_rank, shape.hidden);
    view_.query_norm = ones(shape.query_rank);
    view_.query_up = make(query_rows, shape.query_rank);
  } else {
    view_.query = make(query_rows, shape.hidden);
  }
  view_.kv_down = make(shape.cache_width(), shape.hidden);
  view_.kv_norm = ones(shape.latent);
  view_.kv_up = make(int64_t{shape.heads} * (shape.nope + shape.value), shape.latent);
  view_.output = make(shape.hidden, int64_t{shape.heads} * shape.value);
}

void FillContext(const DecodeLoad& load, int64_t sequence, int64_t first_token, bool value, const TensorView& rows) {
  const Segment segment{first_token, rows.rows, 1};
  FillNormal(SeedOf(load, sequence), value ? kContextValue : kContextKey, {&segment, 1}, rows);
}

std::vector<float> StepInput(const DecodeLoad& load, int64_t sequence) {
  const int heads = load.shape.is_mla() ? 1 : load.shape.gqa().heads;
  const int width = load.shape.is_mla() ? load.shape.mla().hidden : load.shape.gqa().width;
  std::vector<float> values(load.query_tokens * heads * width);
  const Segment segment{load.context_tokens, load.query_tokens, 1};
  FillNormal(SeedOf(load, sequence), kStepInput, {&segment, 1},
             TensorView::Dense(values.data(), DType::kFloat32, load.query_tokens, heads, width));
  return values;
}

StatusOr<std::unique_ptr<DecodeSubject>> MakeDecodeSubject(Communicator& comm, const DecodeLoad& load,
                                                           const Method& method, const RandomMlaWeights* weights) {
  if (load.shape.is_mla()) {
    auto subject = std::make_unique<MlaSubject>(comm, load, method);
    TESSERA_RETURN_IF_ERROR(subject->Prepare(*weights));
    return subject;
  }
  if (method.method == DecodeMethod::kTpla) {
    return absl::InvalidArgumentError("tpla shards a latent cache; " + load.shape.name + " has none");
  }
  auto subject = std::make_unique<GqaSubject>(comm, load, method);
  TESSERA_RETURN_IF_ERROR(subject->Prepare());
  return subject;
}

}  // namespace tessera::launcher
