#include "launcher/lm/decode_subject.h"

#include <algorithm>
#include <cstring>

#include "launcher/lm/decode_runner.h"
#include "launcher/lm/decode_subject_parts.h"

namespace tessera::launcher {

double AttentionFlops(const DecodeLoad& load, double heads, double widths, double local_share) {
  const double keys = static_cast<double>(load.context_tokens) + (static_cast<double>(load.query_tokens) + 1) / 2;
  return 2 * heads * widths * keys * static_cast<double>(load.rows()) * local_share;
}

Status WaitForAll(Communicator& comm) {
  TESSERA_ASSIGN_OR_RETURN(Request barrier, comm.Barrier());
  return Wait(comm, barrier, "the others to start");
}

MlaDecoderOptions MlaOptionsFor(const DecodeLoad& load, const Method& method, int ranks) {
  MlaDecoderOptions options;
  options.method = method.method;
  options.groups = method.groups;
  options.block_tokens = kPageTokens;
  options.page_tokens = kPageTokens;
  options.cache_dtype = load.dtype;
  options.compute = ProjectionType(load.dtype);
  options.max_positions = load.context_tokens + load.query_tokens;
  options.kernel = load.kernel;
  options.threads = load.threads;
  options.pages = PagesFor(options, ranks, load.batch, options.max_positions);
  return options;
}

std::vector<float> MlaStepInput(const DecodeLoad& load) {
  std::vector<float> hidden;
  for (int64_t sequence = 0; sequence < load.batch; ++sequence) {
    const std::vector<float> rows = StepInput(load, sequence);
    hidden.insert(hidden.end(), rows.begin(), rows.end());
  }
  return hidden;
}

double MlaAttentionFlops(const DecodeLoad& load, const MlaDecoderOptions& options, const CacheSharding& sharding,
                         int rank, int64_t local_rows) {
  // Heads that meet the rank's rows, in its columns.
  const bool by_tokens = sharding.axis == CacheAxis::kSequence;
  const DecodeSpec spec{
      .method = options.method, .ranks = sharding.ranks, .groups = options.groups, .heads = load.shape.heads()};
  const double heads = by_tokens ? load.shape.heads() : spec.QueryHeads(rank).size();
  const auto columns = static_cast<double>(sharding.LatentColumns(rank, load.shape.mla().latent).size());
  const double share = by_tokens ? static_cast<double>(local_rows) / static_cast<double>(load.context_tokens) : 1;
  return AttentionFlops(load, heads, 2 * columns + load.shape.mla().rope, share);
}

Status ForEachMlaRows(const DecodeLoad& load, int64_t sequence, const CacheSharding& sharding, int rank,
                      const std::function<Status(int64_t first, const TensorView& rows)>& store) {
  const MlaShape& shape = load.shape.mla();
  const Range columns = sharding.LatentColumns(rank, shape.latent);
  const auto size = static_cast<int64_t>(SizeInBytes(load.dtype));
  for (int64_t first = 0; first < load.context_tokens; first += kFillTokens) {
    const int64_t count = std::min(kFillTokens, load.context_tokens - first);
    const RowBuffer made(load.dtype, count, 1, shape.cache_width());
    FillContext(load, sequence, first, false, made.view());
    const int64_t first_held = sharding.LocalRows(rank, first);
    const RowBuffer held(load.dtype, sharding.LocalRows(rank, first + count) - first_held, 1,
                         static_cast<int>(columns.size()) + shape.rope);
    int64_t next = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!sharding.Holds(rank, first + i)) continue;
      auto* const row = static_cast<std::byte*>(held.view().At(next++, 0));
      const auto* from = static_cast<const std::byte*>(made.view().At(i, 0));
      std::memcpy(row, from + columns.begin * size, columns.size() * size);
      std::memcpy(row + columns.size() * size, from + shape.latent * size, shape.rope * size);
    }
    if (next > 0) TESSERA_RETURN_IF_ERROR(store(first_held, held.view()));
  }
  return absl::OkStatus();
}

StatusOr<std::unique_ptr<DecodeSubject>> MakeDecodeSubject(Communicator& comm, const DecodeLoad& load,
                                                           const Method& method, const RandomMlaWeights* weights) {
  if (load.shape.is_mla()) {
    return load.device == Device::kCuda ? MakeCudaMlaSubject(comm, load, method, *weights)
                                        : MakeMlaSubject(comm, load, method, *weights);
  }
  if (method.method == DecodeMethod::kTpla) {
    return absl::InvalidArgumentError("tpla shards a latent cache; " + load.shape.name + " has none");
  }
  return load.device == Device::kCuda ? MakeCudaGqaSubject(comm, load, method) : MakeGqaSubject(comm, load, method);
}

}  // namespace tessera::launcher
