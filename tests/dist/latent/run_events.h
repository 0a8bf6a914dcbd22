// Carrying out a random history on any decoder.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "tests/dist/latent/latent_case.h"

namespace tessera::latent_test {

inline int64_t Sum(const std::vector<int64_t>& values) {
  int64_t sum = 0;
  for (const int64_t value : values) sum += value;
  return sum;
}

inline std::vector<float> Floats(const reference::Dense& dense, int64_t first, int64_t rows) {
  const auto begin = dense.values.begin() + first * dense.columns;
  return {begin, begin + rows * dense.columns};
}

// [rows of the step, D]: depends on sequence and position alone, whatever else happens.
inline std::vector<float> HiddenOf(const std::vector<StepTokens>& step, std::span<const int64_t> positions, int width) {
  std::vector<float> hidden;
  auto position = positions.begin();
  for (const StepTokens& entry : step) {
    for (int64_t t = 0; t < entry.tokens; ++t, ++position) {
      for (int c = 0; c < width; ++c) {
        hidden.push_back(std::sin(static_cast<float>((entry.sequence + 1) * 37 + *position * 11 + c * 5)));
      }
    }
  }
  return hidden;
}

inline MlaDecoderOptions SmallOptions(DecodeMethod method) {
  MlaDecoderOptions options;
  options.method = method;
  options.block_tokens = 4;
  options.page_tokens = 4;
  options.pages = 6;
  options.max_positions = 100;
  return options;
}

// Holds the local cache against what it must have of living sequences of so many tokens; pages only where no fork
// shares them.
template <typename Decoder>
Status CheckCache(Communicator& comm, const MlaShape& shape, Decoder& decoder, const MlaDecoderOptions& options,
                  const std::vector<SequenceId>& ids, const std::vector<int64_t>& tokens, bool forked) {
  const auto size = static_cast<int64_t>(SizeInBytes(options.cache_dtype));
  const int64_t bytes = (shape.latent / options.groups + shape.rope) * size;
  if (decoder.cache().bytes_per_token_layer() != bytes) {
    return absl::DataLossError(
        absl::StrCat("a row takes ", decoder.cache().bytes_per_token_layer(), " bytes, not ", bytes));
  }
  int64_t pages = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (tokens[i] < 0) continue;  // released
    const int64_t rows = RowsHeld(options, comm.size(), comm.rank(), tokens[i]);
    const int64_t held = decoder.cache().rows(decoder.LocalSequence(ids[i]));
    if (decoder.tokens(ids[i]) != tokens[i] || held != rows) {
      return absl::DataLossError(absl::StrCat("sequence ", i, " of ", tokens[i], " tokens is counted as ",
                                              decoder.tokens(ids[i]), " and has ", held, " rows, not ", rows));
    }
    pages += (rows + options.page_tokens - 1) / options.page_tokens;
  }
  if (const int64_t used = options.pages - decoder.cache().free_pages(); forked ? used > pages : used != pages) {
    return absl::DataLossError(absl::StrCat(used, " pages in use; the sequences need ", pages));
  }
  return absl::OkStatus();
}

// `decoder` has the problem's layers and its first sequences, `ids`. `attend(layer, hidden, out)` computes one layer of
// the step that was begun. `output` as of RunLatentRank.
template <typename Decoder, typename Attend>
Status RunEvents(Communicator& comm, const LatentCase& problem, const MlaDecoderOptions& options, Decoder& decoder,
                 std::vector<SequenceId> ids, Attend attend, std::vector<float>& output) {
  const MlaShape& shape = problem.shape;
  std::vector<int64_t> tokens = problem.prefix;
  bool forked = false;
  int64_t next = Sum(problem.prefix);
  for (const Event& event : problem.events) {
    TESSERA_RETURN_IF_ERROR(CheckCache(comm, shape, decoder, options, ids, tokens, forked));
    switch (event.kind) {
      case Event::Kind::kStep: {
        std::vector<StepTokens> step;
        for (const StepTokens& entry : event.step) {
          step.push_back({ids[entry.sequence], entry.tokens});
          tokens[entry.sequence] += entry.tokens;
        }
        TESSERA_RETURN_IF_ERROR(decoder.BeginStep(step));
        const int64_t rows = decoder.step_rows();
        const std::vector<float> hidden = Floats(problem.hidden, next, rows);
        next += rows;
        for (int layer = 0; layer < options.layers; ++layer) {
          std::vector<float> out(rows * shape.hidden, NAN);
          TESSERA_RETURN_IF_ERROR(attend(layer, hidden, out));
          output.insert(output.end(), out.begin(), out.end());
        }
        break;
      }
      case Event::Kind::kFork: {
        TESSERA_ASSIGN_OR_RETURN(const SequenceId child, decoder.Fork(ids[event.sequence], event.tokens));
        ids.push_back(child);
        tokens.push_back(event.tokens);
        forked = true;
        break;
      }
      case Event::Kind::kTruncate:
        TESSERA_RETURN_IF_ERROR(decoder.Truncate(ids[event.sequence], event.tokens));
        tokens[event.sequence] = event.tokens;
        break;
      case Event::Kind::kRelease:
        TESSERA_RETURN_IF_ERROR(decoder.Release(ids[event.sequence]));
        tokens[event.sequence] = -1;
        break;
    }
  }
  TESSERA_RETURN_IF_ERROR(CheckCache(comm, shape, decoder, options, ids, tokens, forked));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (tokens[i] >= 0) TESSERA_RETURN_IF_ERROR(decoder.Release(ids[i]));
  }
  if (decoder.cache().free_pages() != options.pages) return absl::DataLossError("pages were lost");
  return absl::OkStatus();
}

}  // namespace tessera::latent_test
