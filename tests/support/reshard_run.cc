#include "tests/support/reshard_run.h"

#include <cstring>
#include <deque>
#include <vector>

#include "runtime/engine/reshard.h"
#include "tests/support/local_tensors.h"
#include "tests/support/reshards.h"

namespace tessera::testing {
namespace {

// The bytes of one element of the whole cache.
uint32_t Element(int sequence, int layer, int64_t token, int64_t column) {
  uint64_t x = ((static_cast<uint64_t>(sequence) * 64 + layer) << 40) ^ (static_cast<uint64_t>(token) << 16) ^ column;
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<uint32_t>(x >> 32);
}

// Columns of key or value head `head` of what the rank holds, in the order they are stored.
std::vector<int64_t> StoredColumns(const CacheEnd& end, const CacheRowShape& shape, int index, bool value, int head) {
  std::vector<int64_t> columns;
  if (shape.latent) {
    const IntervalSet held = HeldColumns(end, shape, index);
    for (const Range& range : held.ranges()) {
      for (int64_t c = range.begin; c < range.end; ++c) columns.push_back(c);
    }
    return columns;
  }
  const int first = end.layouts.empty() ? end.sharding.KvHeads(index, shape.kv_heads).begin : 0;
  const int width = value ? shape.value_width : shape.key_width;
  const int64_t base = value ? int64_t{shape.kv_heads} * shape.key_width : 0;
  for (int c = 0; c < width; ++c) columns.push_back(base + int64_t{first + head} * width + c);
  return columns;
}

std::vector<int64_t> StoredTokens(const CacheEnd& end, int sequence, int64_t tokens, int index) {
  std::vector<int64_t> stored;
  if (!end.layouts.empty()) {
    for (const Segment& segment : end.layouts[sequence].segments(index)) {
      for (int64_t i = 0; i < segment.count; ++i) stored.push_back(segment.token(i));
    }
    return stored;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    if (end.sharding.Holds(index, t)) stored.push_back(t);
  }
  return stored;
}

CacheRowShape ShapeAt(const CacheEnd& end, const CacheRowShape& shape, int index) {
  return end.layouts.empty() ? end.sharding.LocalShape(index, shape) : shape;
}

// Calls write(layer, sequence, row, head, value?, bytes) for everything the rank holds.
template <typename Write>
void ForEachRow(const ReshardSpec& spec, const CacheEnd& end, int index, int layers, Write write) {
  const CacheRowShape local = ShapeAt(end, spec.shape, index);
  const size_t element = SizeInBytes(spec.shape.dtype);
  std::vector<std::byte> bytes;
  for (int s = 0; s < static_cast<int>(spec.tokens.size()); ++s) {
    const std::vector<int64_t> tokens = StoredTokens(end, s, spec.tokens[s], index);
    for (int head = 0; head < local.kv_heads; ++head) {
      for (bool value : {false, true}) {
        if (value && spec.shape.latent) continue;
        const std::vector<int64_t> columns = StoredColumns(end, spec.shape, index, value, head);
        bytes.resize(columns.size() * element);
        for (int layer = 0; layer < layers; ++layer) {
          for (size_t row = 0; row < tokens.size(); ++row) {
            for (size_t c = 0; c < columns.size(); ++c) {
              const uint32_t bits = Element(s, layer, tokens[row], columns[c]);
              std::memcpy(bytes.data() + c * element, &bits, element);
            }
            write(layer, s, static_cast<int64_t>(row), head, value, bytes);
          }
        }
      }
    }
  }
}

// A cache whose every byte is 0xff, NaN in every dtype.
PagedCache PoisonedCache(const CacheOptions& options) {
  PagedCache cache = PagedCache::Create(options).value();
  // The pool is the test's own memory here: nothing else says what lies beyond the rows.
  if (cache.bytes() > 0) std::memset(const_cast<std::byte*>(cache.layer(0).key), 0xff, cache.bytes());
  return cache;
}

std::vector<SequenceId> StartAll(PagedCache& cache, const ReshardSpec& spec, const CacheEnd& end, int index,
                                 int64_t extra) {
  std::vector<SequenceId> ids;
  std::vector<CacheGrowth> growth;
  for (size_t s = 0; s < spec.tokens.size(); ++s) {
    ids.push_back(cache.Start());
    const auto rows = StoredTokens(end, static_cast<int>(s), spec.tokens[s], index).size();
    growth.push_back({ids.back(), static_cast<int64_t>(rows) + extra});
  }
  static_cast<void>(cache.Append(growth));
  return ids;
}

void Fill(PagedCache& cache, const std::vector<SequenceId>& ids, const ReshardSpec& spec, const CacheEnd& end,
          int index) {
  ForEachRow(spec, end, index, cache.options().layers,
             [&](int layer, int s, int64_t row, int head, bool value, const std::vector<std::byte>& bytes) {
               std::byte* to = value ? cache.Value(layer, ids[s], row, head) : cache.Key(layer, ids[s], row, head);
               std::memcpy(to, bytes.data(), bytes.size());
             });
}

struct DenseSource {
  std::deque<PoisonedTensor> tensors;
  std::vector<DenseRows> rows;  // [layers][sequences]
  bool Intact() const {
    return std::all_of(tensors.begin(), tensors.end(), [](const PoisonedTensor& t) { return t.MarginsIntact(); });
  }
};

void MakeDense(const ReshardSpec& spec, int index, int layers, DenseSource& source) {
  const CacheRowShape local = ShapeAt(spec.from, spec.shape, index);
  for (int layer = 0; layer < layers; ++layer) {
    for (size_t s = 0; s < spec.tokens.size(); ++s) {
      const auto rows = static_cast<int64_t>(StoredTokens(spec.from, s, spec.tokens[s], index).size());
      const TensorView key = source.tensors.emplace_back(local.dtype, rows, local.kv_heads, local.key_width).view();
      const TensorView value = source.tensors.emplace_back(local.dtype, rows, local.kv_heads, local.value_width).view();
      source.rows.push_back({key, value});
    }
  }
  ForEachRow(spec, spec.from, index, layers,
             [&](int layer, int s, int64_t row, int head, bool value, const std::vector<std::byte>& bytes) {
               const DenseRows& dense = source.rows[layer * spec.tokens.size() + s];
               const ConstTensorView& view = value ? dense.value : dense.key;
               std::memcpy(const_cast<void*>(view.At(row, head)), bytes.data(), bytes.size());
             });
}

}  // namespace

Status RunReshard(Communicator& comm, const std::string& name) {
  auto generator = GeneratorFor(name);
  const ReshardSpec spec = RandomReshard(generator, comm.size(), 60);
  const int layers = static_cast<int>(generator() % 3) + 1;
  const bool dense = generator() % 2 == 0;
  const bool by_layer = generator() % 2 == 0;
  const int64_t staging = std::vector<int64_t>{0, 500, 1 << 20}[generator() % 3];
  auto own = GeneratorFor(absl::StrCat(name, "/rank", comm.rank()));
  const int page_tokens = static_cast<int>(own() % 9) + 1;
  const int from = spec.from.IndexOf(comm.rank());
  const int to = spec.to.IndexOf(comm.rank());

  ReshardSource source;
  std::unique_ptr<PagedCache> source_cache, destination, direct;
  std::vector<SequenceId> source_ids;
  DenseSource tensors;
  if (from != kNoIndex && dense) {
    MakeDense(spec, from, layers, tensors);
  } else if (from != kNoIndex) {
    const CacheOptions options{ShapeAt(spec.from, spec.shape, from), layers, page_tokens, 400};
    source_cache = std::make_unique<PagedCache>(PoisonedCache(options));
    source_ids = StartAll(*source_cache, spec, spec.from, from, static_cast<int64_t>(own() % 4));
    Fill(*source_cache, source_ids, spec, spec.from, from);
    source = {source_cache.get(), source_ids, {}};
  }
  if (to != kNoIndex) {
    const CacheOptions options{ShapeAt(spec.to, spec.shape, to), layers, page_tokens, 300};
    destination = std::make_unique<PagedCache>(PoisonedCache(options));
    direct = std::make_unique<PagedCache>(PoisonedCache(options));
    Fill(*direct, StartAll(*direct, spec, spec.to, to, 0), spec, spec.to, to);
  }

  TESSERA_ASSIGN_OR_RETURN(auto reshard, CacheReshard::Create(comm, spec, destination.get(), {layers, staging}));
  TESSERA_RETURN_IF_ERROR(Verify(reshard->plan()));
  Traffic traffic;
  for (int layer = 0; layer < layers;) {
    const Range range{layer, by_layer ? layer + 1 : layers};
    const size_t sequences = spec.tokens.size();
    if (from != kNoIndex && dense)
      source.rows = std::span(tensors.rows).subspan(layer * sequences, range.size() * sequences);
    TESSERA_RETURN_IF_ERROR(reshard->Move(range, source));
    traffic.bytes_sent += reshard->stats().traffic.bytes_sent;
    traffic.bytes_received += reshard->stats().traffic.bytes_received;
    layer = static_cast<int>(range.end);
  }

  int64_t sent = 0, received = 0, peers = 0;
  for (const ReshardMessage& message : reshard->plan().messages) {
    const int64_t bytes = message.elements() * static_cast<int64_t>(SizeInBytes(spec.shape.dtype)) * layers;
    if (message.from == comm.rank() && message.to != comm.rank()) sent += bytes;
    if (message.to == comm.rank() && message.from != comm.rank()) received += bytes;
    peers += (message.from == comm.rank()) + (message.to == comm.rank() && message.from != comm.rank());
  }
  if (traffic.bytes_sent != sent || traffic.bytes_received != received) {
    return absl::DataLossError(absl::StrFormat("%d bytes sent and %d received; the plan says %d and %d",
                                               traffic.bytes_sent, traffic.bytes_received, sent, received));
  }
  const int64_t row = std::max(spec.shape.key_width, spec.shape.value_width) * SizeInBytes(spec.shape.dtype);
  if (reshard->stats().staging_bytes > std::max(staging, peers * row)) {
    return absl::DataLossError(absl::StrFormat("%d bytes staged", reshard->stats().staging_bytes));
  }
  if (!tensors.Intact()) return absl::DataLossError("memory around a source was written");
  if (to == kNoIndex) return absl::OkStatus();
  if (destination->bytes() > 0 && std::memcmp(destination->layer(0).key, direct->layer(0).key, direct->bytes()) != 0) {
    return absl::DataLossError("the destination differs from a cache built directly");
  }
  const std::vector<SequenceId> ids = reshard->TakeSequences();
  reshard.reset();
  for (size_t s = 0; s < spec.tokens.size(); ++s) {
    if (destination->rows(ids[s]) != spec.to.sharding.LocalRows(to, spec.tokens[s])) {
      return absl::DataLossError("a taken sequence has the wrong length");
    }
    TESSERA_RETURN_IF_ERROR(destination->Release(ids[s]));
  }
  if (destination->free_pages() != 300) return absl::DataLossError("pages leaked");
  return absl::OkStatus();
}

}  // namespace tessera::testing
