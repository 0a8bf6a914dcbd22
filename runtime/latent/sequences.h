// The sequences of a latent decoder and the step in progress: names, tokens, growth in every rank's cache or in none,
// and what the rows of a step see. Internal to latent attention.
#pragma once

#include <algorithm>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include "collectives/agreement.h"
#include "collectives/communicator.h"
#include "kernels/decode.h"
#include "partition/cache_sharding.h"
#include "runtime/base/status.h"
#include "runtime/engine/cache.h"

namespace tessera {

// New tokens of one sequence in one step.
struct StepTokens {
  SequenceId sequence = 0;
  int64_t tokens = 0;
};

// The most a step may hold.
struct StepLimits {
  int64_t sequences = std::numeric_limits<int64_t>::max();
  int64_t tokens_per_sequence = std::numeric_limits<int64_t>::max();
};

// `Cache` is a PagedCache or a CudaPagedCache. Calls and errors are those of MlaDecoder. Not thread-safe.
template <typename Cache>
class LatentSequences {
 public:
  // `comm` outlives this; all ranks have the same sequences.
  LatentSequences(Communicator& comm, const CacheSharding& sharding, int64_t max_positions, Cache cache,
                  const StepLimits& limits = {})
      : comm_(comm), sharding_(sharding), max_positions_(max_positions), limits_(limits), cache_(std::move(cache)) {}

  SequenceId Start() { return Add(cache_.Start(), 0); }
  // Gives a name to a sequence that the local cache has already.
  SequenceId Add(SequenceId local, int64_t tokens) {
    sequences_[next_] = {local, tokens};
    return next_++;
  }

  StatusOr<SequenceId> Fork(SequenceId parent, int64_t tokens) {
    TESSERA_ASSIGN_OR_RETURN(const Sequence* found, Find(parent));
    TESSERA_RETURN_IF_ERROR(CheckLength("fork at", parent, *found, tokens));
    TESSERA_ASSIGN_OR_RETURN(const SequenceId local, cache_.Fork(found->local, LocalRows(tokens)));
    return Add(local, tokens);
  }
  Status Truncate(SequenceId sequence, int64_t tokens) {
    TESSERA_ASSIGN_OR_RETURN(Sequence * found, Find(sequence));
    TESSERA_RETURN_IF_ERROR(CheckLength("truncate to", sequence, *found, tokens));
    TESSERA_RETURN_IF_ERROR(cache_.Truncate(found->local, LocalRows(tokens)));
    EndStep();
    found->tokens = tokens;
    return absl::OkStatus();
  }
  Status Release(SequenceId sequence) {
    TESSERA_ASSIGN_OR_RETURN(const Sequence* found, Find(sequence));
    TESSERA_RETURN_IF_ERROR(cache_.Release(found->local));
    EndStep();
    sequences_.erase(sequence);
    return absl::OkStatus();
  }
  Status Adopt(SequenceId sequence, int64_t tokens) {
    TESSERA_ASSIGN_OR_RETURN(Sequence * found, Find(sequence));
    const int64_t expected = LocalRows(tokens);
    if (const int64_t rows = cache_.rows(found->local); rows != expected) {
      return absl::FailedPreconditionError(
          absl::StrCat("sequence ", sequence, " has ", rows, " local rows; ", tokens, " tokens need ", expected));
    }
    EndStep();
    found->tokens = tokens;
    return absl::OkStatus();
  }
  int64_t tokens(SequenceId sequence) const {
    const auto it = sequences_.find(sequence);
    return it == sequences_.end() ? 0 : it->second.tokens;
  }
  SequenceId Local(SequenceId sequence) const { return sequences_.at(sequence).local; }
  Cache& cache() { return cache_; }
  const Cache& cache() const { return cache_; }

  // Collective.
  Status BeginStep(std::span<const StepTokens> step) {
    EndStep();
    std::vector<int64_t> rows_before;
    for (const StepTokens& entry : step) {
      const auto it = sequences_.find(entry.sequence);
      rows_before.push_back(it == sequences_.end() ? 0 : cache_.rows(it->second.local));
    }
    const Status local = Grow(step);
    if (Status agreed = AgreeOnStatus(comm_, local, "making room in the cache"); !agreed.ok()) {
      // Ranks that had room give it back, so that the sequences are what they were everywhere.
      for (size_t i = 0; local.ok() && i < step.size(); ++i) {
        TESSERA_RETURN_IF_ERROR(cache_.Truncate(Local(step[i].sequence), rows_before[i]));
      }
      return agreed;
    }
    in_step_ = true;
    for (const StepTokens& entry : step) {
      Sequence& sequence = sequences_.at(entry.sequence);
      auto& own = step_.emplace_back(StepSequence{sequence.local, step_rows(), {}});
      for (int64_t token = sequence.tokens; token < sequence.tokens + entry.tokens; ++token) {
        positions_.push_back(token);
        own.visible.push_back({0, LocalRows(token + 1)});
        new_rows_.push_back({sequence.local, sharding_.Holds(comm_.rank(), token) ? LocalRows(token) : -1});
      }
      sequence.tokens += entry.tokens;
    }
    return absl::OkStatus();
  }
  bool in_step() const { return in_step_; }
  int64_t step_rows() const { return static_cast<int64_t>(positions_.size()); }
  std::span<const int64_t> positions() const { return positions_; }
  // Where each row of the step goes in the local cache; row -1: it is another rank's.
  struct NewRow {
    SequenceId local = 0;
    int64_t row = -1;
  };
  std::span<const NewRow> new_rows() const { return new_rows_; }
  // Valid until a sequence of the step changes.
  std::vector<DecodeSequence> Attended() const {
    std::vector<DecodeSequence> attended;
    for (const StepSequence& own : step_) attended.push_back({own.first_row, cache_.pages(own.local), own.visible});
    return attended;
  }

 private:
  struct Sequence {
    SequenceId local = 0;  // its name in the local cache
    int64_t tokens = 0;
  };
  struct StepSequence {
    SequenceId local = 0;
    int64_t first_row = 0;       // of the step
    std::vector<Range> visible;  // per row, local cache rows
  };

  int64_t LocalRows(int64_t tokens) const { return sharding_.LocalRows(comm_.rank(), tokens); }
  StatusOr<Sequence*> Find(SequenceId sequence) {
    const auto it = sequences_.find(sequence);
    if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
    return &it->second;
  }
  static Status CheckLength(const char* doing, SequenceId name, const Sequence& sequence, int64_t tokens) {
    if (tokens >= 0 && tokens <= sequence.tokens) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(doing, " ", tokens, " tokens: sequence ", name, " has ", sequence.tokens));
  }
  Status Grow(std::span<const StepTokens> step) {
    if (static_cast<int64_t>(step.size()) > limits_.sequences) {
      return absl::InvalidArgumentError(
          absl::StrCat("the step has ", step.size(), " sequences; max_sequences is ", limits_.sequences));
    }
    std::vector<CacheGrowth> growth;
    for (const StepTokens& entry : step) {
      TESSERA_ASSIGN_OR_RETURN(const Sequence* found, Find(entry.sequence));
      if (std::ranges::count(step, entry.sequence, &StepTokens::sequence) > 1) {
        return absl::InvalidArgumentError(absl::StrCat("sequence ", entry.sequence, " is named twice in one step"));
      }
      if (entry.tokens < 0) return absl::InvalidArgumentError(absl::StrCat("tokens ", entry.tokens, " < 0"));
      if (entry.tokens > limits_.tokens_per_sequence) {
        return absl::InvalidArgumentError(absl::StrCat("sequence ", entry.sequence, " has ", entry.tokens,
                                                       " new tokens; max_tokens_per_sequence is ",
                                                       limits_.tokens_per_sequence));
      }
      const int64_t before = found->tokens, after = before + entry.tokens;
      if (after > max_positions_) {
        return absl::OutOfRangeError(
            absl::StrFormat("sequence %d would have %d tokens; the model supports %d positions", entry.sequence, after,
                            max_positions_));
      }
      growth.push_back({found->local, LocalRows(after) - LocalRows(before)});
    }
    return cache_.Append(growth);
  }
  void EndStep() {
    in_step_ = false;
    step_.clear();
    positions_.clear();
    new_rows_.clear();
  }

  Communicator& comm_;
  const CacheSharding sharding_;
  const int64_t max_positions_;
  const StepLimits limits_;
  Cache cache_;
  std::map<SequenceId, Sequence> sequences_;
  SequenceId next_ = 0;
  // The step in progress; its sequences have not changed since it began.
  bool in_step_ = false;
  std::vector<StepSequence> step_;
  std::vector<int64_t> positions_;  // per row
  std::vector<NewRow> new_rows_;    // per row
};

}  // namespace tessera
