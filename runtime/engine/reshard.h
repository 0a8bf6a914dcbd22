// Executes a hand-over of cached sequences between ranks: a ReshardPlan over a communicator, from pages or dense rows
// into pages, through staging memory of bounded size.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"
#include "partition/reshard.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/engine/cache.h"

namespace tessera {

// The rows a rank has of one sequence in one layer: the layout's order where the source has layouts, token order
// elsewhere. Host memory, unit width stride, the cache's dtype.
struct DenseRows {
  ConstTensorView key;    // [rows, local kv heads, key width]; latent: [rows, 1, latent then rope]
  ConstTensorView value;  // [rows, local kv heads, value width]; not looked at for a latent cache
};

// What a rank of the source hands over: sequences of a cache, or dense rows. Not looked at on other ranks.
struct ReshardSource {
  const PagedCache* cache = nullptr;
  std::span<const SequenceId> sequences;  // of `cache`, in the spec's order; each may have more rows than are moved
  std::span<const DenseRows> rows;        // without a cache: [layers moved][sequences]
};

struct ReshardOptions {
  int layers = 1;  // of the caches
  // Per rank, but at least one row per peer. What stays in the processor's cache is faster: of 1, 8 and 64 MiB, 8 was
  // best at two ranks, by 1.4 to 2 times over 64.
  int64_t staging_bytes = 8ll << 20;
};

struct ReshardStats {
  double seconds = 0;
  Traffic traffic;
  int64_t staging_bytes = 0;  // held
};

// One rank's end of a hand-over. Not thread-safe. All calls but the last three are collective over the communicator,
// whose ranks are the spec's world ranks; those in neither end take part in agreeing only.
class CacheReshard {
 public:
  // Compares the digest of spec and options, then starts the sequences in `destination` on the ranks of the new
  // sharding (null elsewhere). When one rank cannot, for want of pages say, all return its error and no cache has
  // changed. `comm` and `destination` outlive this.
  static StatusOr<std::unique_ptr<CacheReshard>> Create(Communicator& comm, const ReshardSpec& spec,
                                                        PagedCache* destination, const ReshardOptions& options);
  // Releases the new sequences unless they were taken.
  ~CacheReshard();

  // Moves some layers, as a prefill does that keeps one layer's rows at a time; synchronous. The same range on every
  // rank. When a rank's source does not fit, all ranks return its error before anything moves, and a right call may
  // follow.
  Status Move(Range layers, const ReshardSource& source);

  // The new sequences, in the spec's order; from now on they are the caller's. None on ranks outside the new sharding.
  std::vector<SequenceId> TakeSequences();
  const ReshardPlan& plan() const;
  const ReshardStats& stats() const;  // of the last Move

 private:
  struct State;
  explicit CacheReshard(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
