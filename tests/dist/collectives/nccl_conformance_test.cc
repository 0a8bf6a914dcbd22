#include "collectives/mpi/communicator.h"
#include "tests/dist/collectives/conformance.h"
#include "tests/dist/collectives/staged_communicator.h"

namespace tessera::testing {
namespace {

World NcclWorld() {
  return {"Nccl", [](const RankProgram& program) -> Status {
            TESSERA_ASSIGN_OR_RETURN(auto control, MakeMpiWorld());
            TESSERA_ASSIGN_OR_RETURN(const CudaDevice device, OpenDeviceOfRank(*control));
            TESSERA_ASSIGN_OR_RETURN(auto comm, StagedCommunicator::Make(std::move(control), device));
            return program(*comm);
          }};
}

INSTANTIATE_TEST_SUITE_P(Nccl, Conformance, ::testing::Values(NcclWorld()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
