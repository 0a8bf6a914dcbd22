// This rank's end of a world, as the C interface knows it, with the one collective that training loops need besides.
#pragma once

#include <ATen/core/Tensor.h>
#include <tessera.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace tessera_torch {

class Communicator;

// Something made from a communicator that must be gone before it.
class Dependent {
 public:
  virtual ~Dependent() = default;
  virtual void Close() = 0;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  tessera_comm* handle() const;  // throws once closed

  // Sums an fp32 or fp64 tensor over all ranks in place. Collective.
  void AllReduce(const at::Tensor& tensor);

  // Destroys what was made from this communicator, then the communicator. Collective with MPI. Later use throws.
  void Close();
  // Tells the peers that this rank cannot go on.
  void Abort();
  void Add(std::weak_ptr<Dependent> dependent) { dependents_.push_back(std::move(dependent)); }

 protected:
  Communicator() = default;
  void Adopt(tessera_comm* comm);  // takes ownership and asks for rank and size
  virtual void Sum(const at::Tensor& tensor) = 0;
  virtual void CloseTransport() {}

 private:
  tessera_comm* comm_ = nullptr;
  int rank_ = 0, size_ = 1;
  std::vector<std::weak_ptr<Dependent>> dependents_;
};

// One rank alone.
std::shared_ptr<Communicator> MakeSelf();
// `mpi_comm` is the address of an MPI_Comm (mpi4py: MPI._addressof); 0 is MPI_COMM_WORLD, and initialises MPI with
// MPI_THREAD_MULTIPLE where nobody has.
std::shared_ptr<Communicator> MakeMpi(uintptr_t mpi_comm, int64_t deadline_ms);
// Finalises MPI when MakeMpi initialised it.
void FinalizeMpi();

}  // namespace tessera_torch
