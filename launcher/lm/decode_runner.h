// The bundled language model with its attention decoded over ranks: the hidden state is on every rank, attention is
// shared.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "launcher/lm/exact_runner.h"
#include "launcher/lm/method.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera::launcher {

class DecodeRunner {
 public:
  // Collective; model and communicator outlive this. `factors`: per layer, or empty.
  static StatusOr<std::unique_ptr<DecodeRunner>> Create(Communicator& comm, const LoadedModel& model,
                                                        const MlaDecoderOptions& options,
                                                        const std::vector<TplaFactors>& factors);

  // Collective. Starts a sequence for every document of an exact run that kept its cache rows; they continue after
  // their document.
  StatusOr<std::vector<SequenceId>> TakeOver(const ExactResult& exact);
  // Collective. The next tokens of each sequence of the step, in order -> final hidden state [rows, D], on every rank.
  StatusOr<std::vector<float>> Step(std::span<const StepTokens> step, std::span<const int> tokens);

  MlaDecoder& decoder() { return *decoder_; }

 private:
  DecodeRunner(Communicator& comm, const LoadedModel& model) : comm_(comm), model_(model) {}
  Communicator& comm_;
  const LoadedModel& model_;
  std::unique_ptr<MlaDecoder> decoder_;
};

// A decoder that `sequences` sequences of `tokens` tokens fit in, under the dtypes and threads of `exact`.
MlaDecoderOptions MakeDecoderOptions(const LoadedModel& model, const Method& method, const ExactOptions& exact,
                                     int ranks, int64_t sequences, int64_t tokens);
// Pages per rank so that `sequences` sequences of `tokens` tokens fit under any sharding of the options.
int64_t PagesFor(const MlaDecoderOptions& options, int ranks, int64_t sequences, int64_t tokens);

}  // namespace tessera::launcher
