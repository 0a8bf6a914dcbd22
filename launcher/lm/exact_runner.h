// The bundled language model with exact attention: documents packed into one sequence that is spread over all ranks.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/command.h"
#include "launcher/lm/model.h"
#include "launcher/problem_flags.h"
#include "runtime/latent/mla_prefill.h"

namespace tessera::launcher {

// A checkpoint and what it says of itself.
struct LoadedModel {
  Checkpoint checkpoint;
  ModelConfig config;
  LanguageModel language;
};
// Not collective.
StatusOr<LoadedModel> LoadModel(const std::string& directory, DType compute, int threads);

// In which type a model attending in `dtype` projects: bf16 rounds the projections too, fp16 does not.
inline DType ProjectionType(DType dtype) {
  return dtype == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

struct ExactOptions {
  std::string strategy = "auto";
  int ranks_per_node = 0;
  DType dtype = DType::kFloat32;    // of the attention
  DType compute = DType::kFloat32;  // of the projections
  std::string kernel;
  int threads = 1;
};
// What the flags of score and generate ask for; `dtype` is a name that ParseDType knows.
ExactOptions MakeExactOptions(const ExecutionFlags& flags, const std::string& dtype, const Context& context);

// This rank's part of the documents.
struct ExactResult {
  struct Row {
    int document = 0;
    int64_t position = 0;
  };
  std::vector<Row> rows;
  std::vector<float> hidden;                   // [rows, D], final, before the last norm
  std::vector<std::vector<float>> cache_rows;  // per layer [rows, C + dr]; when asked for
  std::vector<Layout> layouts;                 // per document: which of its tokens each rank has
  std::string plan;                            // the strategy that ran
};

// FailedPrecondition, with every kernel's reason, when none (or not the one called options.kernel) serves the model's
// attention: for commands that may not get as far as a prefill.
Status CheckAttentionKernel(const ModelConfig& config, const ExactOptions& options);

class ExactRunner {
 public:
  // Collective; model and communicator outlive this.
  static StatusOr<std::unique_ptr<ExactRunner>> Create(Communicator& comm, const LoadedModel& model,
                                                       const ExactOptions& options);
  // Collective: tokens of each document, the same on every rank; causal within documents. Cache rows are kept when a
  // decoder is to take over.
  StatusOr<ExactResult> Run(std::span<const std::span<const int>> documents, bool keep_cache_rows);

 private:
  ExactRunner(Communicator& comm, const LoadedModel& model, const ExactOptions& options)
      : comm_(comm), model_(model), options_(options) {}

  Communicator& comm_;
  const LoadedModel& model_;
  ExactOptions options_;
  std::unique_ptr<MlaPrefill> prefill_;
  std::vector<int64_t> planned_boundaries_;
  PlanSpec spec_;
};

}  // namespace tessera::launcher
