// Where CUDA is not built.
#include "launcher/lm/decode_subject_parts.h"
#include "launcher/pass_runner.h"

namespace tessera::launcher {
namespace {

Status NoCuda() {
  return absl::UnimplementedError("--device cuda: this build has no CUDA; configure with -DTESSERA_CUDA=ON");
}

}  // namespace

StatusOr<std::unique_ptr<PassRunner>> internal::MakeCudaRunner(Communicator& /*comm*/, const PlanSpec& /*spec*/,
                                                               const LocalTensors& /*tensors*/,
                                                               const RunnerOptions& /*options*/) {
  return NoCuda();
}

StatusOr<std::string> internal::GpuName(Communicator& /*comm*/) {
  return NoCuda();
}

StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaMlaSubject(Communicator& /*comm*/, const DecodeLoad& /*load*/,
                                                            const Method& /*method*/,
                                                            const RandomMlaWeights& /*weights*/) {
  return NoCuda();
}

StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaGqaSubject(Communicator& /*comm*/, const DecodeLoad& /*load*/,
                                                            const Method& /*method*/) {
  return NoCuda();
}

}  // namespace tessera::launcher
