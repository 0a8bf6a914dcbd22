// What decode attention is on any machine: which part of the cache a rank attends, what all ranks must agree on, and
// what a step is checked for. Internal to the engine.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>

#include "collectives/communicator.h"
#include "kernels/decode.h"
#include "partition/decode.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// Plans per number of query rows. Batches grow and shrink by a few rows; plans of more sizes than are kept are made
// again when they are needed again.
template <typename Plan>
class PlansByRows {
 public:
  static constexpr size_t kMost = 16;

  // Null when there is none; otherwise it is the front.
  std::shared_ptr<Plan> Find(int64_t rows) {
    for (auto it = plans_.begin(); it != plans_.end(); ++it) {
      if (it->first != rows) continue;
      plans_.splice(plans_.begin(), plans_, it);
      return it->second;
    }
    return nullptr;
  }
  // Drops the one that was not used for longest when there are too many.
  std::shared_ptr<Plan> Add(int64_t rows, std::shared_ptr<Plan> plan) {
    if (plans_.size() == kMost) plans_.pop_back();
    return plans_.emplace_front(rows, std::move(plan)).second;
  }
  Plan& front() const { return *plans_.front().second; }
  auto begin() const { return plans_.begin(); }
  auto end() const { return plans_.end(); }

 private:
  std::list<std::pair<int64_t, std::shared_ptr<Plan>>> plans_;  // last used first
};

// Collective: all ranks have the same spec but for its rows, the same scale and soft cap, the spec is valid and for as
// many ranks as there are.
Status AgreeOnDecode(Communicator& comm, const DecodeSpec& spec, float scale, float soft_cap);

// The attend_cache step of a program, or null: a rank may have no heads.
const AttendCacheStep* AttendOf(const RankProgram& program);

// The key/value heads that the rank's cache holds.
HeadRange KvHeadsOf(const DecodeSpec& spec, int rank);

// CheckTensor of the caller's tensors against the program's slots, and whether they are dense.
Status CheckDecodeTensors(const RankProgram& program, DType dtype, const ConstTensorView& query,
                          const ConstTensorView& output, const ConstTensorView& lse, MemorySpace space);
Status CheckCache(const CacheLayer& cache, const DecodeSpec& spec, int kv_heads);
// Every query row needs its (maybe empty) share of this rank's cache: what no sequence covers would stay unwritten.
Status CheckRowsCovered(int64_t covered, int64_t rows);

}  // namespace tessera
