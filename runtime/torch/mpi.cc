// Ranks on MPI. A binding is an application of the library: it may initialise and finalise what the library only uses.
#ifdef TESSERA_TORCH_MPI
#include <mpi.h>
#endif

#include "communicator.h"
#include "result.h"

namespace tessera_torch {

#ifdef TESSERA_TORCH_MPI
namespace {

bool initialised_here = false;

void CheckMpi(int code, const char* what) {
  if (code != MPI_SUCCESS) throw std::runtime_error(std::string(what) + " failed with code " + std::to_string(code));
}

class Mpi final : public Communicator {
 public:
  Mpi(MPI_Comm comm, int64_t deadline_ms) {
    tessera_comm* handle = nullptr;
    Check(tessera_comm_create_mpi(&comm, deadline_ms, &handle));
    Adopt(handle);
    CheckMpi(MPI_Comm_dup(comm, &sums_), "MPI_Comm_dup");
  }

 private:
  void Sum(const at::Tensor& tensor) override {
    const MPI_Datatype type = tensor.scalar_type() == at::kDouble ? MPI_DOUBLE : MPI_FLOAT;
    constexpr int64_t kMostOfACall = 1 << 30;  // counts are int
    auto* data = static_cast<char*>(tensor.data_ptr());
    for (int64_t left = tensor.numel(); left > 0;) {
      const int64_t count = std::min(left, kMostOfACall);
      CheckMpi(MPI_Allreduce(MPI_IN_PLACE, data, static_cast<int>(count), type, MPI_SUM, sums_), "MPI_Allreduce");
      data += count * tensor.element_size();
      left -= count;
    }
  }
  void CloseTransport() override { MPI_Comm_free(&sums_); }

  MPI_Comm sums_ = MPI_COMM_NULL;
};

}  // namespace

std::shared_ptr<Communicator> MakeMpi(uintptr_t mpi_comm, int64_t deadline_ms) {
  int initialised = 0;
  CheckMpi(MPI_Initialized(&initialised), "MPI_Initialized");
  if (!initialised) {
    if (mpi_comm != 0) throw std::invalid_argument("comm: MPI is not initialised");
    int provided = 0;
    CheckMpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    initialised_here = true;
  }
  return std::make_shared<Mpi>(mpi_comm == 0 ? MPI_COMM_WORLD : *reinterpret_cast<MPI_Comm*>(mpi_comm), deadline_ms);
}

void FinalizeMpi() {
  int finalised = 0;
  if (initialised_here && MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised) MPI_Finalize();
}

#else

std::shared_ptr<Communicator> MakeMpi(uintptr_t, int64_t) {
  throw std::runtime_error("TESSERA_UNIMPLEMENTED: this extension was built without MPI (TESSERA_TORCH_MPI=OFF)");
}
void FinalizeMpi() {}

#endif

}  // namespace tessera_torch
