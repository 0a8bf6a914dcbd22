// A GPU of this node.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace tessera {

struct ComputeCapability {
  int major = 0;
  int minor = 0;
  std::string ToString() const { return absl::StrCat(major, ".", minor); }
  friend bool operator==(const ComputeCapability&, const ComputeCapability&) = default;
};

// A value that names one GPU and remembers what it is. Copies name the same GPU.
class CudaDevice {
 public:
  // What GPU `index` is, without opening it.
  struct Identity {
    std::array<uint8_t, 16> uuid{};
    std::string pci_bus_id;
  };
  static StatusOr<Identity> Identify(int index);
  // GPUs that CUDA shows to this process. FailedPrecondition when there is no driver or no GPU, and says which.
  static StatusOr<int> Count();
  // Opens GPU `index`, makes it current for this thread and lets its pool keep freed memory. InvalidArgument when there
  // is no such GPU; FailedPrecondition when this build has no code for its compute capability: the error names both.
  static StatusOr<CudaDevice> Open(int index);

  int index() const { return index_; }
  const std::string& name() const { return name_; }
  ComputeCapability capability() const { return capability_; }
  int multiprocessors() const { return multiprocessors_; }
  int64_t total_bytes() const { return total_bytes_; }
  // The most shared memory one block can have, when its kernel asks for it.
  int64_t shared_bytes_per_block() const { return shared_bytes_per_block_; }
  int64_t l2_bytes() const { return l2_bytes_; }
  // Equal in all processes that see the same GPU.
  const std::array<uint8_t, 16>& uuid() const { return identity_.uuid; }
  const std::string& pci_bus_id() const { return identity_.pci_bus_id; }  // "0000:01:00.0"

  StatusOr<int64_t> FreeBytes() const;
  // CUDA keeps a current GPU per thread; every thread that submits work calls this first.
  Status MakeCurrent() const;
  // Waits for everything submitted to this GPU. For shutdown and tests; returns the device's fault when there was one.
  Status Synchronize() const;

  std::string ToString() const;  // "GPU 0 (NVIDIA H100 80GB HBM3, 9.0)"

 private:
  CudaDevice() = default;
  int index_ = 0;
  std::string name_;
  ComputeCapability capability_;
  int multiprocessors_ = 0;
  int64_t total_bytes_ = 0;
  int64_t shared_bytes_per_block_ = 0;
  int64_t l2_bytes_ = 0;
  Identity identity_;
};

// What this binary was built for: the values of TESSERA_CUDA_ARCHITECTURES, such as {"80", "90a"}.
std::vector<std::string> BuiltArchitectures();
// Why none of `architectures` runs on a GPU of this capability; empty when one does. "80" runs on 8.0 and later: as
// machine code on 8.x, compiled from its PTX by the driver elsewhere. "90a" runs on 9.0 alone.
std::string WhyNotBuiltFor(ComputeCapability capability, const std::vector<std::string>& architectures);

}  // namespace tessera
