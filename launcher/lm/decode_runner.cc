#include "launcher/lm/decode_runner.h"

#include <algorithm>

#include "collectives/agreement.h"

namespace tessera::launcher {

StatusOr<std::unique_ptr<DecodeRunner>> DecodeRunner::Create(Communicator& comm, const LoadedModel& model,
                                                             const MlaDecoderOptions& options,
                                                             const std::vector<TplaFactors>& factors) {
  auto runner = std::unique_ptr<DecodeRunner>(new DecodeRunner(comm, model));
  StatusOr<std::unique_ptr<MlaDecoder>> decoder = MlaDecoder::Create(comm, model.config.attention, options);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, decoder.status(), "creating the decoder"));
  runner->decoder_ = *std::move(decoder);
  const auto load = [&]() -> Status {
    for (int layer = 0; layer < model.config.layers; ++layer) {
      TESSERA_ASSIGN_OR_RETURN(const MlaWeights weights,
                               ReadMlaWeights(model.checkpoint, model.config.attention, layer));
      TESSERA_RETURN_IF_ERROR(runner->decoder_->AddLayer(weights, factors.empty() ? TplaFactors{} : factors[layer]));
    }
    return absl::OkStatus();
  };
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, load(), "loading attention weights"));
  return runner;
}

StatusOr<std::vector<float>> DecodeRunner::Step(std::span<const StepTokens> step, std::span<const int> tokens) {
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, decoder_->BeginStep(step), "starting a decode step"));
  if (static_cast<int64_t>(tokens.size()) != decoder_->step_rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens for a step of ", decoder_->step_rows(), " rows"));
  }
  return model_.language.Run(
      tokens, [&](int layer, const float* normed, float* out) { return decoder_->Attend(layer, normed, out); });
}

StatusOr<std::vector<SequenceId>> DecodeRunner::TakeOver(const ExactResult& exact) {
  const int width = model_.config.attention.cache_width();
  const DType dtype = decoder_->cache().options().shape.dtype;
  const auto row_bytes = static_cast<int64_t>(width * SizeInBytes(dtype));
  const size_t documents = exact.layouts.size();
  std::vector<int64_t> counts(documents, 0);
  for (const auto& row : exact.rows) ++counts[row.document];
  std::vector<std::vector<std::byte>> storage;
  std::vector<DenseRows> rows;  // [layers][documents]
  for (const std::vector<float>& layer : exact.cache_rows) {
    std::vector<std::byte*> next;
    for (size_t document = 0; document < documents; ++document) {
      auto& bytes = storage.emplace_back(counts[document] * row_bytes);
      rows.push_back({TensorView::Dense(bytes.data(), dtype, counts[document], 1, width), {}});
      next.push_back(bytes.data());
    }
    for (size_t r = 0; r < exact.rows.size(); ++r) {
      std::byte*& to = next[exact.rows[r].document];
      for (int c = 0; c < width; ++c) StoreFromFloat(to, dtype, c, layer[r * width + c]);
      to += row_bytes;
    }
  }
  return decoder_->TakeOver(exact.layouts, rows);
}

MlaDecoderOptions MakeDecoderOptions(const LoadedModel& model, const Method& method, const ExactOptions& exact,
                                     int ranks, int64_t sequences, int64_t tokens) {
  MlaDecoderOptions options;
  options.method = method.method;
  options.groups = method.groups;
  options.layers = model.config.layers;
  options.cache_dtype = exact.dtype;
  options.compute = exact.compute;
  options.max_positions = model.config.max_positions;
  options.threads = exact.threads;
  options.block_tokens = options.page_tokens = 16;  // texts are short: every rank gets some of each
  options.pages = PagesFor(options, ranks, sequences, tokens);
  return options;
}

int64_t PagesFor(const MlaDecoderOptions& options, int ranks, int64_t sequences, int64_t tokens) {
  // Under token sharding the first rank may hold one block more than an even share.
  int64_t rows = tokens;
  if (DecodeSpec{.method = options.method}.axis() == CacheAxis::kSequence) {
    const int64_t round = int64_t{ranks} * options.block_tokens;
    rows = std::min(tokens, (tokens + round - 1) / round * options.block_tokens);
  }
  return sequences * ((rows + options.page_tokens - 1) / options.page_tokens);
}

}  // namespace tessera::launcher
