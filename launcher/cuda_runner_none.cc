// Where CUDA is not built.
#include "launcher/pass_runner.h"

namespace tessera::launcher {

StatusOr<std::unique_ptr<PassRunner>> internal::MakeCudaRunner(Communicator& /*comm*/, const PlanSpec& /*spec*/,
                                                               const LocalTensors& /*tensors*/,
                                                               const RunnerOptions& /*options*/) {
  return absl::UnimplementedError("--device cuda: this build has no CUDA; configure with -DTESSERA_CUDA=ON");
}

}  // namespace tessera::launcher
