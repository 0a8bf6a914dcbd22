// The virtual GPU's front door: parses the PTX that nvcc emits and runs its kernels on the CPU, checking as it goes.
// Standard library only. What a run proves is arithmetic, indexing and synchronisation as modelled here (README.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/virtual_gpu/ptx/address_space.h"
#include "tests/virtual_gpu/ptx/counters.h"

namespace tessera::vgpu {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t Count() const { return uint64_t{x} * y * z; }
};

// A .global or .const variable of a module; it lives at this host address as long as its module.
struct Global {
  uint64_t address = 0;
  uint64_t bytes = 0;
  bool constant = false;
};

struct KernelInfo {
  std::string name;
  std::vector<uint32_t> parameter_offsets;  // in the parameter block, one per parameter
  std::vector<uint32_t> parameter_bytes;
  uint32_t parameter_block_bytes = 0;
  uint32_t static_shared_bytes = 0;  // with the padding that leads to the dynamic part
  uint32_t local_bytes = 0;          // per thread
  int registers = 0;                 // 32-bit registers live at once in the PTX: a lower bound, not what ptxas allots
  uint32_t max_threads = 1024;       // .maxntid or .reqntid
  Dim3 required_cluster{0, 0, 0};    // .reqnctapercluster; zero when the launch decides
  size_t instructions = 0;
  std::vector<std::string> unknown;  // "line 12 `text`" of every instruction that would fault when reached
};

class Kernel;
const KernelInfo& Info(const Kernel& kernel);

// A parsed PTX module: one translation unit.
class Module {
 public:
  // Null, with the line and its text in *error, when the text cannot be parsed. An instruction that is not known is not
  // a parse error: it is a fault when a kernel reaches it.
  static std::unique_ptr<Module> Parse(std::string_view ptx, std::string* error);
  ~Module();
  const Kernel* Find(std::string_view entry) const;       // null when absent
  const Global* FindGlobal(std::string_view name) const;  // null when absent
  std::vector<std::string> Entries() const;

  struct Contents;

 private:
  explicit Module(std::unique_ptr<Contents> contents);
  std::unique_ptr<Contents> contents_;
};

enum class FaultKind {
  kUnknownInstruction,
  kOutOfBounds,
  kMisaligned,
  kUninitializedShared,
  kSharedRace,
  kMissingWait,
  kMissingFence,  // fence.proxy.async between writes of threads and reads of the asynchronous proxy
  kBarrier,
  kNoProgress,
  kTrap,
  kBadLaunch,  // what a real driver would refuse: too many threads, parameters of the wrong size
};
const char* Name(FaultKind kind);

struct Fault {
  FaultKind kind = FaultKind::kTrap;
  std::string message;  // kernel, block, thread, line and text of the PTX, what is wrong
};

struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared_bytes = 0;
  std::vector<std::byte> parameters;  // parameter_block_bytes of them
  bool check_shared = true;           // races, uninitialised bytes and missing waits in shared memory (half the time)
  uint64_t jump_limit = uint64_t{1} << 27;  // taken branches of one block before it counts as stuck
};

// Runs every block, in order, on `workers` threads. Empty when all went well; otherwise the first fault found.
// Adds to *counters when it is not null. Thread-safe: launches of several streams may run at once.
std::optional<Fault> Run(const Launch& launch, const AddressSpace& memory, Counters* counters, int workers = 1);

}  // namespace tessera::vgpu
