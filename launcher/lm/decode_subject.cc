#include "launcher/lm/decode_subject.h"

#include "launcher/lm/decode_subject_parts.h"

namespace tessera::launcher {

double AttentionFlops(const DecodeLoad& load, double heads, double widths, double local_share) {
  const double keys = static_cast<double>(load.context_tokens) + (static_cast<double>(load.query_tokens) + 1) / 2;
  return 2 * heads * widths * keys * static_cast<double>(load.rows()) * local_share;
}

Status WaitForAll(Communicator& comm) {
  TESSERA_ASSIGN_OR_RETURN(Request barrier, comm.Barrier());
  return Wait(comm, barrier, "the others to start");
}

StatusOr<std::unique_ptr<DecodeSubject>> MakeDecodeSubject(Communicator& comm, const DecodeLoad& load,
                                                           const Method& method, const RandomMlaWeights* weights) {
  if (load.shape.is_mla()) return MakeMlaSubject(comm, load, method, *weights);
  if (method.method == DecodeMethod::kTpla) {
    return absl::InvalidArgumentError("tpla shards a latent cache; " + load.shape.name + " has none");
  }
  return MakeGqaSubject(comm, load, method);
}

}  // namespace tessera::launcher
