#include "launcher/lm/scorer.h"

#include <cmath>
#include <memory>

#include "collectives/agreement.h"
#include "runtime/base/elapsed.h"

namespace tessera::launcher {
namespace {

constexpr int64_t kWindowsPerBatch = 16;

// -log2 of the probability of `next`.
double BitsOf(std::span<const float> logits, int next) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  return (largest + std::log(sum) - logits[next]) / std::log(2.0);
}

}  // namespace

StatusOr<ExactRunner*> Scorer::Runner() {
  if (runner_ == nullptr) {
    TESSERA_ASSIGN_OR_RETURN(runner_, ExactRunner::Create(comm_, model_, exact_));
  }
  return runner_.get();
}

StatusOr<Score> Scorer::Exact(int64_t prefix) {
  TESSERA_ASSIGN_OR_RETURN(ExactRunner* const runner, Runner());
  Score score;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t first = 0; first < windows_.count; first += kWindowsPerBatch) {
    progress_.Say(absl::StrFormat("exact: window %d of %d", first, windows_.count));
    const int64_t count = std::min(kWindowsPerBatch, windows_.count - first);
    std::vector<std::span<const int>> documents;
    for (int64_t w = 0; w < count; ++w) documents.push_back(windows_.Given(first + w, 0, windows_.context));
    TESSERA_ASSIGN_OR_RETURN(const ExactResult result, runner->Run(documents, /*keep_cache_rows=*/false));
    score.plan = result.plan;
    StatusOr<std::vector<float>> logits = model_.language.Logits(result.hidden);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, logits.status(), "computing logits"));
    const int64_t vocabulary = model_.config.vocabulary;
    for (size_t r = 0; r < result.rows.size(); ++r) {
      const auto& row = result.rows[r];
      if (row.position < prefix) continue;
      score.bits += BitsOf(std::span(*logits).subspan(r * vocabulary, vocabulary),
                           windows_.Next(first + row.document, row.position));
      ++score.bytes;
    }
  }
  score.seconds = SecondsSince(start);
  TESSERA_ASSIGN_OR_RETURN(const auto bits, AllGatherValue(comm_, score.bits, "adding up bits"));
  TESSERA_ASSIGN_OR_RETURN(const auto bytes, AllGatherValue(comm_, score.bytes, "adding up bytes"));
  score.bits = 0;
  score.bytes = 0;
  for (int r = 0; r < comm_.size(); ++r) {
    score.bits += bits[r];
    score.bytes += bytes[r];
  }
  return score;
}

StatusOr<Score> Scorer::Decoded(const Method& method, int64_t prefix) {
  const MlaDecoderOptions options = MakeDecoderOptions(model_, method, exact_, comm_.size(),
                                                       std::min(kWindowsPerBatch, windows_.count), windows_.context);
  StatusOr<std::vector<TplaFactors>> factors = FactorsOf(method, model_);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, factors.status(), "reading what the conversion recorded"));
  TESSERA_ASSIGN_OR_RETURN(const auto runner, DecodeRunner::Create(comm_, model_, options, *factors));
  ExactRunner* prefill = nullptr;
  if (prefix > 0) {
    TESSERA_ASSIGN_OR_RETURN(prefill, Runner());
  }
  Score score;
  score.cache_bytes = runner->decoder().cache().bytes_per_token_layer();
  const auto start = std::chrono::steady_clock::now();
  for (int64_t first = 0; first < windows_.count; first += kWindowsPerBatch) {
    progress_.Say(absl::StrFormat("%s: window %d of %d", method.ToString(), first, windows_.count));
    const int64_t count = std::min(kWindowsPerBatch, windows_.count - first);
    std::vector<SequenceId> sequences;
    if (prefill != nullptr) {
      std::vector<std::span<const int>> documents;
      for (int64_t w = 0; w < count; ++w) documents.push_back(windows_.Given(first + w, 0, prefix));
      TESSERA_ASSIGN_OR_RETURN(const ExactResult result, prefill->Run(documents, /*keep_cache_rows=*/true));
      TESSERA_ASSIGN_OR_RETURN(sequences, runner->TakeOver(result));
    } else {
      for (int64_t w = 0; w < count; ++w) sequences.push_back(runner->decoder().Start());
    }
    TESSERA_RETURN_IF_ERROR(DecodeWindows(*runner, sequences, first, prefix, score));
    for (SequenceId sequence : sequences) TESSERA_RETURN_IF_ERROR(runner->decoder().Release(sequence));
  }
  score.seconds = SecondsSince(start);
  return score;
}

Status Scorer::DecodeWindows(DecodeRunner& runner, std::span<const SequenceId> sequences, int64_t first, int64_t prefix,
                             Score& score) {
  const int64_t stride = query_tokens_ > 0 ? query_tokens_ : windows_.context - prefix;
  const int64_t vocabulary = model_.config.vocabulary;
  for (int64_t position = prefix; position < windows_.context; position += stride) {
    const int64_t tokens = std::min(stride, windows_.context - position);
    std::vector<StepTokens> step;
    std::vector<int> given;
    for (size_t w = 0; w < sequences.size(); ++w) {
      step.push_back({sequences[w], tokens});
      const auto window = windows_.Given(first + static_cast<int64_t>(w), position, tokens);
      given.insert(given.end(), window.begin(), window.end());
    }
    StatusOr<std::vector<float>> hidden = runner.Step(step, given);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, hidden.status(), "decoding"));
    TESSERA_ASSIGN_OR_RETURN(const std::vector<float> logits, model_.language.Logits(*hidden));
    for (size_t row = 0; row < given.size(); ++row) {
      score.bits += BitsOf(
          std::span(logits).subspan(row * vocabulary, vocabulary),
          windows_.Next(first + static_cast<int64_t>(row) / tokens, position + static_cast<int64_t>(row) % tokens));
      ++score.bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera::launcher
