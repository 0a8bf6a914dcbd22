// A job under mpirun that loses a rank: failing_job <none|kill|kill-busy|stop|error> <victim> <deadline ms> <marker>.
// The marker is there for others to find the processes by.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "collectives/mpi/communicator.h"
#include "collectives/mpi/session.h"

namespace {

using namespace std::chrono_literals;
using tessera::Status;

constexpr int kSteps = 30;
constexpr int kLastStep = 17;  // of the victim

Status RunSteps(tessera::Communicator& comm, const std::string& fault, int victim) {
  std::vector<std::byte> out(64), in(64);
  for (int step = 0; step < kSteps; ++step) {
    comm.ReportProgress({tessera::RankState::kComputing, step});
    std::this_thread::sleep_for(5ms);
    if (step == kLastStep && comm.rank() == victim && fault != "none") {
      std::this_thread::sleep_for(1s);  // so that the peers have heard of this step
      if (fault == "error") return absl::ResourceExhaustedError("no memory");
      std::raise(fault == "stop" ? SIGSTOP : SIGKILL);
    }
    // Survivors that compute look at nobody's health.
    if (step == kLastStep && fault == "kill-busy") std::this_thread::sleep_for(10s);
    TESSERA_ASSIGN_OR_RETURN(tessera::Request receive,
                             comm.Receive(in, (comm.rank() + comm.size() - 1) % comm.size(), 0));
    TESSERA_ASSIGN_OR_RETURN(tessera::Request send, comm.Send(out, (comm.rank() + 1) % comm.size(), 0));
    TESSERA_RETURN_IF_ERROR(Wait(comm, receive, "ring receive"));
    TESSERA_RETURN_IF_ERROR(Wait(comm, send, "ring send"));
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return EXIT_FAILURE;
  auto session = tessera::MpiSession::Create(&argc, &argv, {.watch_termination = true});
  if (!session.ok()) return EXIT_FAILURE;
  auto comm = tessera::MakeMpiWorld({.deadline = std::chrono::milliseconds(std::atoi(argv[3]))});
  if (!comm.ok()) (*session)->Abort(EXIT_FAILURE, std::string(comm.status().message()));
  const Status status = RunSteps(**comm, argv[1], std::atoi(argv[2]));
  if (!status.ok()) {
    (*comm)->ReportProgress({tessera::RankState::kFailed, (*comm)->progress().step});
    (*session)->Abort(3, std::string(status.message()));
  }
  return EXIT_SUCCESS;
}
