// Devices: count, selection, properties.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>

#include "tests/virtual_gpu/cudart/node.h"

using namespace tessera::vgpu;

namespace {

constexpr int kPortableClusterBlocks = 8;
constexpr int kDefaultSharedBytes = 48 << 10;  // dynamic shared memory beyond this is asked for by cudaFuncSetAttribute
constexpr int kReservedSharedBytes = 1024;

bool Exists(Node& node, int device) {
  return device >= 0 && device < node.devices();
}

// Equal in all processes of a node, so that ranks can tell that they share a GPU.
cudaUUID_t UuidOf(int device) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const uint64_t hash = std::hash<std::string>{}(host);
  cudaUUID_t uuid;
  std::memset(uuid.bytes, 0, sizeof uuid.bytes);
  std::memcpy(uuid.bytes, &hash, sizeof hash);
  uuid.bytes[15] = static_cast<char>(device + 1);
  return uuid;
}

cudaDeviceProp PropertiesOf(Device& device) {
  const Architecture& arch = device.architecture();
  cudaDeviceProp p;
  std::memset(&p, 0, sizeof p);
  std::snprintf(p.name, sizeof p.name, "virtual GPU %d.%d", arch.major, arch.minor);
  p.uuid = UuidOf(device.index());
  p.totalGlobalMem = static_cast<size_t>(device.total_bytes());
  p.sharedMemPerBlock = kDefaultSharedBytes;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.memPitch = 0x7fffffff;
  p.maxThreadsPerBlock = 1024;
  const int threads[3] = {1024, 1024, 64}, blocks[3] = {0x7fffffff, 65535, 65535};
  std::memcpy(p.maxThreadsDim, threads, sizeof threads);
  std::memcpy(p.maxGridSize, blocks, sizeof blocks);
  p.totalConstMem = 65536;
  p.major = arch.major;
  p.minor = arch.minor;
  p.textureAlignment = 512;
  p.multiProcessorCount = arch.multiprocessors;
  p.canMapHostMemory = p.concurrentKernels = p.unifiedAddressing = p.streamPrioritiesSupported = 1;
  p.pciBusID = device.index() + 1;
  p.asyncEngineCount = 3;
  p.memoryBusWidth = 5120;
  p.l2CacheSize = arch.l2_bytes;
  p.maxThreadsPerMultiProcessor = arch.threads_per_multiprocessor;
  p.sharedMemPerMultiprocessor = arch.shared_bytes_per_multiprocessor;
  p.sharedMemPerBlockOptin = arch.shared_bytes_per_block_opt_in;
  p.maxBlocksPerMultiProcessor = arch.blocks_per_multiprocessor;
  p.reservedSharedMemPerBlock = kReservedSharedBytes;
  p.hostRegisterSupported = p.memoryPoolsSupported = p.canUseHostPointerForRegisteredMem = 1;
  p.clusterLaunch = arch.major >= 9;
  return p;
}

bool AttributeOf(const cudaDeviceProp& p, cudaDeviceAttr attribute, int* value) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      return true;
    case cudaDevAttrMaxBlockDimX:
      *value = p.maxThreadsDim[0];
      return true;
    case cudaDevAttrMaxGridDimX:
      *value = p.maxGridSize[0];
      return true;
    case cudaDevAttrMaxGridDimY:
      *value = p.maxGridSize[1];
      return true;
    case cudaDevAttrMaxGridDimZ:
      *value = p.maxGridSize[2];
      return true;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      return true;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      return true;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      return true;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = static_cast<int>(p.reservedSharedMemPerBlock);
      return true;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = p.regsPerBlock;
      return true;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = p.regsPerMultiprocessor;
      return true;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      return true;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = p.maxBlocksPerMultiProcessor;
      return true;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      return true;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      return true;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      return true;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      return true;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      return true;
    case cudaDevAttrPciBusId:
      *value = p.pciBusID;
      return true;
    case cudaDevAttrPciDeviceId:
      *value = p.pciDeviceID;
      return true;
    case cudaDevAttrPciDomainId:
      *value = p.pciDomainID;
      return true;
    case cudaDevAttrUnifiedAddressing:
      *value = 1;
      return true;
    case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      return true;
    case cudaDevAttrCooperativeLaunch:
      *value = p.cooperativeLaunch;
      return true;
    case cudaDevAttrClusterLaunch:
      *value = p.clusterLaunch;
      return true;
    case cudaDevAttrConcurrentKernels:
      *value = 1;
      return true;
    case cudaDevAttrAsyncEngineCount:
      *value = p.asyncEngineCount;
      return true;
    default:
      return false;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  Node& node = Node::Get();
  *count = node.devices();
  return Note(node.usable());
}

cudaError_t cudaGetDevice(int* device) {
  if (Node::Get().usable() != cudaSuccess) return Note(Node::Get().usable());
  *device = Node::current_index();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  Node& node = Node::Get();
  if (node.usable() != cudaSuccess) return Note(node.usable());
  if (!Exists(node, device)) return Note(cudaErrorInvalidDevice);
  Node::current_index() = device;
  return Note(node.current().fault_code());
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return Call([&](Node& node) { return Exists(node, device) ? cudaSuccess : cudaErrorInvalidDevice; });
}

cudaError_t cudaSetDeviceFlags(unsigned) {
  return Call([](Node&) { return cudaSuccess; });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Call([&](Node& node) {
    if (!Exists(node, device)) return cudaErrorInvalidDevice;
    *properties = PropertiesOf(node.device(device));
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Call([&](Node& node) {
    if (!Exists(node, device)) return cudaErrorInvalidDevice;
    return AttributeOf(PropertiesOf(node.device(device)), attribute, value) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  return Call([&](Node& node) {
    if (!Exists(node, device)) return cudaErrorInvalidDevice;
    return std::snprintf(text, bytes, "0000:%02x:00.0", device + 1) < bytes ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return Call([&](Node&) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return Call([&](Node& node) {
    if (!Exists(node, device) || !Exists(node, peer)) return cudaErrorInvalidDevice;
    *can = 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = Node::Get().usable() == cudaErrorInsufficientDriver ? 0 : CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  return Call([](Node& node) {
    for (const Point& point : node.current().LastPoints()) {
      if (point != nullptr) point->Wait();
    }
    return node.current().fault_code();
  });
}

cudaError_t cudaDeviceReset() {
  Node& node = Node::Get();
  if (node.usable() != cudaSuccess) return Note(node.usable());
  node.current().Reset();
  LastError() = cudaSuccess;
  return cudaSuccess;
}

}  // extern "C"
