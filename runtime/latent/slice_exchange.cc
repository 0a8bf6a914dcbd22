#include "runtime/latent/slice_exchange.h"

#include <algorithm>

namespace tessera {
namespace {

// Between [rows, heads, width] and, one after the other, every part's [rows, part, width].
template <typename Copy>
void ForEachRun(const std::vector<HeadRange>& parts, int64_t rows, int64_t width, Copy copy) {
  const int64_t heads = parts.back().end;
  int64_t packed = 0;
  for (const HeadRange& part : parts) {
    for (int64_t row = 0; row < rows; ++row) {
      copy((row * heads + part.begin) * width, packed, part.size() * width);
      packed += part.size() * width;
    }
  }
}

}  // namespace

SlicePlace SlicePlaceOf(const DecodeSpec& spec, int rank) {
  SlicePlace place;
  place.ranks = spec.SlicePeers(rank);
  const int first = spec.OutputHeads(rank).begin;
  for (const int peer : place.ranks) {
    const HeadRange own = spec.SummandHeads(peer);
    place.heads.push_back({own.begin - first, own.end - first});
  }
  return place;
}

StatusOr<SliceExchange> SliceExchange::Create(Communicator& comm, const DecodeSpec& spec) {
  SliceExchange exchange;
  if (spec.groups == 1) return exchange;
  SlicePlace place = SlicePlaceOf(spec, comm.rank());
  exchange.heads_ = std::move(place.heads);
  TESSERA_ASSIGN_OR_RETURN(exchange.comm_, comm.Split(place.ranks.front(), comm.rank()));
  return exchange;
}

Status SliceExchange::Gather(std::vector<float>& query, int64_t rows, int64_t width) const {
  if (comm_ == nullptr) return absl::OkStatus();
  std::vector<int64_t> counts, displacements;
  int64_t total = 0;
  for (const HeadRange& part : heads_) {
    counts.push_back(rows * part.size() * width * static_cast<int64_t>(sizeof(float)));
    displacements.push_back(total);
    total += counts.back();
  }
  std::vector<float> packed(total / sizeof(float));
  TESSERA_ASSIGN_OR_RETURN(
      Request request, comm_->AllGatherV(std::as_bytes(std::span(query)), reinterpret_cast<std::byte*>(packed.data()),
                                         counts, displacements));
  TESSERA_RETURN_IF_ERROR(Wait(*comm_, request, "the queries of the other slices' heads"));
  query.resize(packed.size());
  ForEachRun(heads_, rows, width, [&](int64_t at, int64_t from, int64_t count) {
    std::copy_n(packed.begin() + from, count, query.begin() + at);
  });
  return absl::OkStatus();
}

Status SliceExchange::SumOwn(std::vector<float>& value, int64_t rows, int64_t width) const {
  if (comm_ == nullptr) return absl::OkStatus();
  std::vector<int64_t> counts;
  for (const HeadRange& part : heads_) counts.push_back(rows * part.size() * width);
  std::vector<float> packed(value.size());
  ForEachRun(heads_, rows, width, [&](int64_t at, int64_t to, int64_t count) {
    std::copy_n(value.begin() + at, count, packed.begin() + to);
  });
  value.resize(counts[comm_->rank()]);
  TESSERA_ASSIGN_OR_RETURN(Request request, comm_->ReduceScatterSum(packed, value, counts));
  return Wait(*comm_, request, "the sum of the slices' values");
}

}  // namespace tessera
