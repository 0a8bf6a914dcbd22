// What TPLA's slices tell each other around a layer's attention. Every slice attends for all heads of its place, but
// the maps from and to the hidden state are the same for all slices: each of these ranks projects a part of the heads
// only, so that together they read those weights once. Internal to latent attention.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "partition/decode.h"
#include "runtime/base/status.h"

namespace tessera {

// The ranks that serve the heads of one rank, a slice each, in the order of the slices.
struct SlicePlace {
  std::vector<int> ranks;
  std::vector<HeadRange> heads;  // own heads of each, counted from the place's first; they follow each other
};
SlicePlace SlicePlaceOf(const DecodeSpec& spec, int rank);

class SliceExchange {
 public:
  SliceExchange() = default;  // of a rank that is the only one to serve its heads
  // Collective over `comm`, the ranks of `spec`.
  static StatusOr<SliceExchange> Create(Communicator& comm, const DecodeSpec& spec);

  // Both are collective over the ranks that serve the same heads, and do nothing where there is only one. fp32, host.
  // From [rows, own heads, width] to [rows, all heads of the place, width].
  Status Gather(std::vector<float>& query, int64_t rows, int64_t width) const;
  // From every slice's [rows, all heads of the place, width] to their sum [rows, own heads, width], in slice order.
  Status SumOwn(std::vector<float>& value, int64_t rows, int64_t width) const;

  int64_t bytes_received() const { return comm_ == nullptr ? 0 : comm_->traffic().bytes_received; }

 private:
  std::unique_ptr<Communicator> comm_;  // null: alone
  std::vector<HeadRange> heads_;        // of the place
};

}  // namespace tessera
