#include "runtime/engine/reshard.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "collectives/agreement.h"
#include "runtime/base/elapsed.h"
#include "runtime/device/buffer.h"
#include "runtime/engine/attention.h"
#include "runtime/engine/reshard_check.h"
#include "runtime/engine/reshard_stream.h"

namespace tessera {
namespace {

constexpr int kTag = 0;  // messages of a pair arrive in the order they are sent, so one tag serves

// One message of this rank and the memory its chunks pass through.
struct Lane {
  int peer = 0;
  std::vector<RowRun> runs;
  std::byte* staging = nullptr;
};

// As memory of a failed attention pass: a transport may write to it until the communicator is gone.
void Keep(HostBuffer buffer) {
  static std::mutex mutex;
  static auto* const buffers = new std::vector<HostBuffer>;
  const std::lock_guard lock(mutex);
  buffers->push_back(std::move(buffer));
}

// The most a message may hold, so that the rank with the most peers keeps to the bound; equal on all ranks.
int64_t ChunkBytes(const ReshardPlan& plan, const ReshardOptions& options) {
  const CacheRowShape& shape = plan.spec.shape;
  const auto element = static_cast<int64_t>(SizeInBytes(shape.dtype));
  const int64_t row = (shape.latent ? shape.key_width : std::max(shape.key_width, shape.value_width)) * element;
  std::map<int, int> peers;
  int64_t largest = 0;
  for (const ReshardMessage& message : plan.messages) {
    ++peers[message.from];
    if (message.to != message.from) ++peers[message.to];
    largest = std::max(largest, message.elements() * element * options.layers);
  }
  int most_peers = 1;
  for (const auto& [rank, count] : peers) most_peers = std::max(most_peers, count);
  return std::max(row, std::min(largest, options.staging_bytes / most_peers));
}

}  // namespace

struct CacheReshard::State {
  Communicator* comm = nullptr;
  ReshardPlan plan;
  ReshardOptions options;
  PagedCache* destination = nullptr;
  std::vector<SequenceId> sequences;  // in the destination
  int64_t chunk = 0;
  HostBuffer staging;
  std::vector<Lane> sends, receives;
  Lane own_from, own_to;  // the copy within this rank, listed from both ends
  Status failure;
  ReshardStats stats;

  Status Prepare(PagedCache* cache);
  Status MakeLanes();
  void Pack(StreamCursor& cursor, Range layers, const ReshardSource& source, std::byte* to, int64_t& bytes) const;
  void Unpack(StreamCursor& cursor, const std::byte* from) const;
  Status MoveChunks(Range layers, const ReshardSource& source);
  void ReleaseSequences();
};

void CacheReshard::State::ReleaseSequences() {
  for (SequenceId sequence : sequences) static_cast<void>(destination->Release(sequence));  // ours: it exists
  sequences.clear();
}

// Starts and grows the new sequences, all or none.
Status CacheReshard::State::Prepare(PagedCache* cache) {
  const ReshardSpec& spec = plan.spec;
  const int index = spec.to.IndexOf(comm->rank());
  if (index == kNoIndex) return absl::OkStatus();
  if (cache == nullptr) return absl::InvalidArgumentError("this rank shall hold the cache and has no destination");
  TESSERA_RETURN_IF_ERROR(
      CheckCache("destination", *cache, spec.to.sharding.LocalShape(index, spec.shape), options.layers));
  destination = cache;
  std::vector<CacheGrowth> growth;
  for (int64_t tokens : spec.tokens) {
    sequences.push_back(cache->Start());
    growth.push_back({sequences.back(), spec.to.sharding.LocalRows(index, tokens)});
  }
  return cache->Append(growth);
}

Status CacheReshard::State::MakeLanes() {
  const ReshardSpec& spec = plan.spec;
  const int rank = comm->rank();
  const int from = spec.from.IndexOf(rank);
  const int to = spec.to.IndexOf(rank);
  for (const ReshardMessage& message : plan.messages) {
    Lane out{message.to, {}, nullptr}, in{message.from, {}, nullptr};
    if (message.from == rank) out.runs = RunsOf(message, spec, spec.from, from);
    if (message.to == rank) in.runs = RunsOf(message, spec, spec.to, to);
    if (message.from == rank && message.to == rank) {
      own_from = std::move(out);
      own_to = std::move(in);
    } else if (message.from == rank) {
      sends.push_back(std::move(out));
    } else if (message.to == rank) {
      receives.push_back(std::move(in));
    }
  }
  // Each rank begins with its next neighbour, so that not all send to the lowest rank first.
  std::stable_partition(sends.begin(), sends.end(), [&](const Lane& lane) { return lane.peer > rank; });
  const bool copies = !own_from.runs.empty();
  const auto lanes = static_cast<int64_t>(sends.size() + receives.size() + (copies ? 1 : 0));
  TESSERA_ASSIGN_OR_RETURN(staging, HostBuffer::Allocate(chunk * lanes, "staging of the reshard"));
  std::byte* next = staging.data();
  const auto place = [&](Lane& lane) { lane.staging = std::exchange(next, next + chunk); };
  std::for_each(sends.begin(), sends.end(), place);
  std::for_each(receives.begin(), receives.end(), place);
  if (copies) place(own_from);
  stats.staging_bytes = staging.bytes();
  return absl::OkStatus();
}

namespace {

// Copies `count` rows of `bytes` each; without gaps on both sides it is one copy.
void CopyRows(std::byte* to, int64_t to_stride, const std::byte* from, int64_t from_stride, int64_t bytes,
              int64_t count) {
  if (to_stride == bytes && from_stride == bytes) {
    std::memcpy(to, from, bytes * count);
    return;
  }
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, bytes);
}

}  // namespace

void CacheReshard::State::Pack(StreamCursor& cursor, Range layers, const ReshardSource& source, std::byte* to,
                               int64_t& bytes) const {
  bytes = cursor.Next(chunk, [&](int layer, const RowRun& run, int64_t first, int64_t count) {
    if (source.cache == nullptr) {
      const DenseRows& dense = source.rows[(layer - layers.begin) * plan.spec.tokens.size() + run.sequence];
      const ConstTensorView& view = run.value ? dense.value : dense.key;
      const auto* from = static_cast<const std::byte*>(view.At(run.row + first, run.head)) + run.offset;
      const int64_t stride = view.row_stride * static_cast<int64_t>(SizeInBytes(view.dtype));
      CopyRows(to, run.bytes, from, stride, run.bytes, count);
      to += count * run.bytes;
      return;
    }
    const CacheLayer view = source.cache->layer(layer);
    const auto pages = source.cache->pages(source.sequences[run.sequence]);
    const std::byte* base =
        (run.value ? view.value + run.head * view.value_head_stride : view.key + run.head * view.key_head_stride) +
        run.offset;
    const int64_t stride = run.value ? view.value_row_stride : view.key_row_stride;
    for (int64_t row = run.row + first, end = row + count; row < end;) {
      const int64_t in_page = row % view.page_tokens;
      const int64_t rows = std::min(end - row, view.page_tokens - in_page);
      CopyRows(to, run.bytes, base + pages[row / view.page_tokens] * view.page_stride + in_page * stride, stride,
               run.bytes, rows);
      to += rows * run.bytes;
      row += rows;
    }
  });
}

void CacheReshard::State::Unpack(StreamCursor& cursor, const std::byte* from) const {
  const CacheOptions& cache = destination->options();
  const auto element = static_cast<int64_t>(SizeInBytes(cache.shape.dtype));
  cursor.Next(chunk, [&](int layer, const RowRun& run, int64_t first, int64_t count) {
    const int64_t stride = (run.value ? cache.shape.value_width : cache.shape.key_width) * element;
    for (int64_t row = run.row + first, end = row + count; row < end;) {
      const int64_t rows = std::min(end - row, cache.page_tokens - row % cache.page_tokens);
      const SequenceId sequence = sequences[run.sequence];
      std::byte* to = run.value ? destination->Value(layer, sequence, row, run.head)
                                : destination->Key(layer, sequence, row, run.head);
      CopyRows(to + run.offset, stride, from, run.bytes, run.bytes, rows);
      from += rows * run.bytes;
      row += rows;
    }
  });
}

// Round k moves chunk k of every message. A rank posts all of a round before it waits for any of it, so the rank that
// is furthest behind can always go on.
Status CacheReshard::State::MoveChunks(Range layers, const ReshardSource& source) {
  std::vector<StreamCursor> out, in, ahead;
  for (const Lane& lane : sends) out.emplace_back(lane.runs, layers);
  for (const Lane& lane : receives) in.emplace_back(lane.runs, layers);
  ahead = in;
  std::vector<Request> sending(sends.size()), receiving(receives.size());
  for (int64_t round = 0, moved = 1; moved > 0; ++round) {
    comm->ReportProgress({RankState::kComputing, round});
    moved = 0;
    for (size_t i = 0; i < receives.size(); ++i) {
      const int64_t bytes = ahead[i].Next(chunk, [](int, const RowRun&, int64_t, int64_t) {});
      receiving[i] = Request();
      if (bytes == 0) continue;
      moved += bytes;
      TESSERA_ASSIGN_OR_RETURN(
          receiving[i], comm->Receive({receives[i].staging, static_cast<size_t>(bytes)}, receives[i].peer, kTag));
    }
    for (size_t i = 0; i < sends.size(); ++i) {
      int64_t bytes = 0;
      Pack(out[i], layers, source, sends[i].staging, bytes);
      sending[i] = Request();
      if (bytes == 0) continue;
      moved += bytes;
      TESSERA_ASSIGN_OR_RETURN(sending[i],
                               comm->Send({sends[i].staging, static_cast<size_t>(bytes)}, sends[i].peer, kTag));
    }
    for (size_t i = 0; i < receives.size(); ++i) {
      TESSERA_RETURN_IF_ERROR(Wait(*comm, receiving[i], "receiving a cache"));
      Unpack(in[i], receives[i].staging);
    }
    for (Request& request : sending) TESSERA_RETURN_IF_ERROR(Wait(*comm, request, "sending a cache"));
  }
  StreamCursor read(own_from.runs, layers), write(own_to.runs, layers);
  for (int64_t bytes = own_from.runs.empty() ? 0 : 1; bytes > 0;) {
    Pack(read, layers, source, own_from.staging, bytes);
    if (bytes > 0) Unpack(write, own_from.staging);
  }
  return absl::OkStatus();
}

CacheReshard::CacheReshard(std::unique_ptr<State> state) : state_(std::move(state)) {}

CacheReshard::~CacheReshard() {
  state_->ReleaseSequences();
  if (!state_->failure.ok()) Keep(std::move(state_->staging));
}

StatusOr<std::unique_ptr<CacheReshard>> CacheReshard::Create(Communicator& comm, const ReshardSpec& spec,
                                                             PagedCache* destination, const ReshardOptions& options) {
  // Odd multipliers mix the two options into the digest of the spec.
  const uint64_t digest = Hash(spec) ^ (static_cast<uint64_t>(options.layers) * 0x9e3779b97f4a7c15u) ^
                          (static_cast<uint64_t>(options.staging_bytes) * 0xc2b2ae3d27d4eb4fu);
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, digest, "reshard"));
  TESSERA_RETURN_IF_ERROR(CheckReshard(spec, options, comm.size()));  // the same on every rank
  auto state = std::make_unique<State>();
  state->comm = &comm;
  state->options = options;
  TESSERA_ASSIGN_OR_RETURN(state->plan, MakeReshardPlan(spec));
  state->chunk = ChunkBytes(state->plan, options);
  Status ready = state->Prepare(destination);
  if (ready.ok()) ready = state->MakeLanes();
  const Status agreed = AgreeOnStatus(comm, ready, "reshard");
  if (!agreed.ok()) {
    state->ReleaseSequences();
    return agreed;
  }
  return std::unique_ptr<CacheReshard>(new CacheReshard(std::move(state)));
}

Status CacheReshard::Move(Range layers, const ReshardSource& source) {
  State& s = *state_;
  if (!s.failure.ok()) return s.failure;
  const auto start = std::chrono::steady_clock::now();
  TESSERA_RETURN_IF_ERROR(
      AgreeOnStatus(*s.comm, CheckSource(s.plan.spec, s.options, s.comm->rank(), layers, source), "reshard"));
  TESSERA_RETURN_IF_ERROR(
      AgreeOnHash(*s.comm, static_cast<uint64_t>(layers.begin << 32 | layers.end), "layers of a reshard"));
  const Traffic before = s.comm->traffic();
  const RankProgress progress = s.comm->progress();
  s.failure = s.MoveChunks(layers, source);
  if (!s.failure.ok()) return s.failure;
  s.comm->ReportProgress(progress);
  const Traffic after = s.comm->traffic();
  s.stats.traffic = {after.bytes_sent - before.bytes_sent, after.bytes_received - before.bytes_received,
                     after.messages_sent - before.messages_sent, after.messages_received - before.messages_received};
  s.stats.seconds = SecondsSince(start);
  return absl::OkStatus();
}

std::vector<SequenceId> CacheReshard::TakeSequences() {
  return std::exchange(state_->sequences, {});
}
const ReshardPlan& CacheReshard::plan() const {
  return state_->plan;
}
const ReshardStats& CacheReshard::stats() const {
  return state_->stats;
}

}  // namespace tessera
