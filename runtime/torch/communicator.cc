#include "communicator.h"

#include <ATen/Functions.h>

#include "result.h"

namespace tessera_torch {
namespace {

class Self final : public Communicator {
 public:
  Self() {
    tessera_comm* comm = nullptr;
    Check(tessera_comm_create_self(&comm));
    Adopt(comm);
  }

 private:
  void Sum(const at::Tensor&) override {}
};

}  // namespace

Communicator::~Communicator() {
  tessera_comm_destroy(comm_);
}

void Communicator::Adopt(tessera_comm* comm) {
  comm_ = comm;
  Check(tessera_comm_rank(comm, &rank_));
  Check(tessera_comm_size(comm, &size_));
}

tessera_comm* Communicator::handle() const {
  if (comm_ == nullptr) throw std::runtime_error("the communicator is closed");
  return comm_;
}

void Communicator::AllReduce(const at::Tensor& tensor) {
  static_cast<void>(handle());
  if (!tensor.device().is_cpu()) {
    throw std::invalid_argument("tensor is on " + tensor.device().str() + "; it must be in host memory (cpu)");
  }
  if (tensor.scalar_type() != at::kFloat && tensor.scalar_type() != at::kDouble) {
    throw std::invalid_argument(std::string("tensor has dtype ") + c10::toString(tensor.scalar_type()) +
                                "; sums are taken of float32 and float64");
  }
  const at::Tensor dense = tensor.contiguous();
  Sum(dense);
  if (!dense.is_same(tensor)) tensor.copy_(dense);
}

void Communicator::Close() {
  if (comm_ == nullptr) return;
  for (const auto& weak : dependents_) {
    if (const auto dependent = weak.lock()) dependent->Close();
  }
  dependents_.clear();
  tessera_comm_destroy(comm_);
  comm_ = nullptr;
  CloseTransport();
}

void Communicator::Abort() {
  if (comm_ != nullptr) Check(tessera_comm_abort(comm_));
}

std::shared_ptr<Communicator> MakeSelf() {
  return std::make_shared<Self>();
}

}  // namespace tessera_torch
