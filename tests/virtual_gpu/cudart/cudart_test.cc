// The stand-in for libcudart, used as programs use CUDA: order, memory, launches, symbols, graphs, faults.
#include <cuda.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/virtual_gpu/cudart/test_kernels.h"

extern "C" const char* vgpuFaultText(int device);

namespace tessera::vgpu {
namespace {

using namespace std::chrono_literals;

constexpr int kCount = 1000;
constexpr size_t kBytes = kCount * sizeof(float);

// Every test leaves the device as it found it.
class Cudart : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cudaDeviceReset(), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&a_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&b_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), kBytes), cudaSuccess);
  }
  void TearDown() override { EXPECT_EQ(cudaDeviceReset(), cudaSuccess); }

  void Upload(const std::vector<float>& values) {
    ASSERT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice), cudaSuccess);
  }
  std::vector<float> Download() {
    std::vector<float> values(kCount);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  static std::vector<float> Ramp() {
    std::vector<float> values(kCount);
    std::iota(values.begin(), values.end(), 0.0f);
    return values;
  }

  cudaStream_t a_ = nullptr, b_ = nullptr;
  float* data_ = nullptr;
};

// Holds a stream up, from its constructor on, until it is let go.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    EXPECT_EQ(cudaLaunchHostFunc(stream, &Gate::Wait, this), cudaSuccess);
    while (!entered_) std::this_thread::yield();
  }
  ~Gate() {
    Open();
    while (!passed_) std::this_thread::yield();
  }
  void Open() { open_ = true; }

 private:
  static void Wait(void* self) {
    auto* const gate = static_cast<Gate*>(self);
    gate->entered_ = true;
    while (!gate->open_) std::this_thread::sleep_for(100us);
    gate->passed_ = true;
  }
  std::atomic<bool> entered_ = false, open_ = false, passed_ = false;
};

TEST_F(Cudart, NewMemoryIsNotANumber) {
  for (const float value : Download()) EXPECT_TRUE(std::isnan(value));
}

TEST_F(Cudart, KernelsRunInStreamOrder) {
  Upload(Ramp());
  ASSERT_EQ(Scale(data_, kCount, 2, a_), cudaSuccess);
  ASSERT_EQ(Scale(data_, kCount, 3, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  const std::vector<float> values = Download();
  for (int i = 0; i < kCount; ++i) EXPECT_EQ(values[i], (2.0f * i + 1) * 3 + 1);
}

TEST_F(Cudart, TheCodeOfTheArchitectureRuns) {
  int device_major = 0, device_minor = 0, compiled_for = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&device_major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&device_minor, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
  ASSERT_EQ(ArchitectureOf(reinterpret_cast<int*>(data_), a_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(&compiled_for, data_, sizeof(int), cudaMemcpyDeviceToHost, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  // sm_90a serves 9.0 alone; everything else gets the PTX of 80.
  EXPECT_EQ(compiled_for, device_major == 9 ? 900 : 800);
}

TEST_F(Cudart, StreamsAreAsynchronous) {
  Gate gate(a_);
  ASSERT_EQ(Scale(data_, kCount, 2, a_), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(a_), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
  gate.Open();
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(a_), cudaSuccess);
}

TEST_F(Cudart, HostMemoryIsReadWhenTheCopyRuns) {
  std::vector<float> values(kCount, 1);
  {
    Gate gate(a_);
    ASSERT_EQ(cudaMemcpyAsync(data_, values.data(), kBytes, cudaMemcpyHostToDevice, a_), cudaSuccess);
    values.assign(kCount, 2);
  }
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  EXPECT_EQ(Download(), std::vector<float>(kCount, 2));
}

TEST_F(Cudart, EventsOrderStreams) {
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  {
    Gate gate(a_);
    ASSERT_EQ(cudaMemsetAsync(data_, 0, kBytes, a_), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(event, a_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(b_, event, 0), cudaSuccess);
    ASSERT_EQ(Scale(data_, kCount, 2, b_), cudaSuccess);
    std::this_thread::sleep_for(5ms);
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(b_), cudaErrorNotReady);
  }
  ASSERT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(Download(), std::vector<float>(kCount, 1));
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(Cudart, TheLegacyStreamAndBlockingStreamsWaitForEachOther) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  {
    Gate gate(blocking);
    ASSERT_EQ(cudaMemsetAsync(data_, 0, kBytes, nullptr), cudaSuccess);
    ASSERT_EQ(Scale(data_, kCount, 2, blocking), cudaSuccess);
    std::this_thread::sleep_for(5ms);
    EXPECT_EQ(cudaStreamQuery(nullptr), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);  // non-blocking streams do not take part
  }
  ASSERT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(Download(), std::vector<float>(kCount, 1));
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(Cudart, HandlesThatAreGoneAreRefused) {
  cudaStream_t gone = a_;
  ASSERT_EQ(cudaStreamDestroy(a_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(gone), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(Cudart, StreamOrderedMemoryLivesBetweenItsEnds) {
  void* memory = nullptr;
  size_t before = 0, during = 0, after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
  ASSERT_EQ(cudaMallocAsync(&memory, 1 << 20, a_), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&during, &total), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(memory, 1, 1 << 20, a_), cudaSuccess);
  ASSERT_EQ(cudaFreeAsync(memory, a_), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
  EXPECT_EQ(before - during, size_t{1} << 20);
  EXPECT_EQ(after, before);
  EXPECT_EQ(cudaMemsetAsync(memory, 1, 1, a_), cudaErrorInvalidValue);  // use after free
  EXPECT_EQ(cudaFreeAsync(memory, a_), cudaErrorInvalidValue);          // double free
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
}

// A kernel that another stream runs after the release, with nothing in between.
TEST_F(Cudart, UseAfterStreamOrderedFreeIsAFault) {
  float* memory = nullptr;
  ASSERT_EQ(cudaMallocAsync(reinterpret_cast<void**>(&memory), kBytes, a_), cudaSuccess);
  ASSERT_EQ(cudaFreeAsync(memory, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  {
    Gate gate(b_);
    ASSERT_EQ(Scale(memory, kCount, 2, b_), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamSynchronize(b_), cudaErrorIllegalAddress);
}

TEST_F(Cudart, MemoryThatIsNotYetAllocatedInStreamOrderIsAFault) {
  float* memory = nullptr;
  Gate gate(a_);
  ASSERT_EQ(cudaMallocAsync(reinterpret_cast<void**>(&memory), kBytes, a_), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(memory, 0, kBytes, b_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(b_), cudaErrorIllegalAddress);
  EXPECT_NE(std::string(vgpuFaultText(0)).find("is not yet made in stream order"), std::string::npos);
}

TEST_F(Cudart, CopiesAreChecked) {
  std::vector<float> host(kCount + 1);
  EXPECT_EQ(cudaMemcpy(data_, host.data(), kBytes + 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(data_, host.data(), kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), host.data(), 4, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, 4), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy2D(data_, 4, host.data(), 8, 8, 2, cudaMemcpyDefault), cudaErrorInvalidPitchValue);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, size_t{1} << 40), cudaErrorMemoryAllocation);
}

TEST_F(Cudart, SymbolsAreCopiedAndRead) {
  std::vector<float> factors(kTableEntries), table(kTableEntries);
  std::iota(factors.begin(), factors.end(), 10.0f);
  size_t bytes = 0;
  ASSERT_EQ(cudaGetSymbolSize(&bytes, TableSymbol()), cudaSuccess);
  EXPECT_EQ(bytes, kTableEntries * sizeof(float));
  ASSERT_EQ(cudaMemcpyToSymbol(FactorsSymbol(), factors.data(), bytes, 0, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaMemcpyFromSymbol(table.data(), TableSymbol(), bytes, 0, cudaMemcpyDeviceToHost), cudaSuccess);
  ASSERT_EQ(ReadSymbols(data_, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  const std::vector<float> values = Download();
  for (int i = 0; i < kTableEntries; ++i) {
    EXPECT_EQ(table[i], i + 1.0f);
    EXPECT_EQ(values[i], (i + 1.0f) * (10.0f + i));
  }
  EXPECT_EQ(cudaMemcpyToSymbol(FactorsSymbol(), factors.data(), bytes, 4, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetSymbolSize(&bytes, data_), cudaErrorInvalidSymbol);
}

TEST_F(Cudart, SharedMemoryBeyondTheDefaultMustBeAskedFor) {
  constexpr size_t kLarge = 64 << 10;
  std::vector<float> expected = Ramp();
  Upload(expected);
  EXPECT_EQ(Reverse(data_, kCount, kLarge, false, a_), cudaErrorInvalidValue);
  ASSERT_EQ(AllowSharedBytes(kLarge), cudaSuccess);
  for (const bool extended : {false, true}) {
    ASSERT_EQ(Reverse(data_, kCount, kLarge, extended, a_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
    std::reverse(expected.begin(), expected.end());
    EXPECT_EQ(Download(), expected);
  }
  EXPECT_EQ(AllowSharedBytes(1 << 20), cudaErrorInvalidValue);
  cudaFuncAttributes attributes;
  ASSERT_EQ(AttributesOfReverse(&attributes), cudaSuccess);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, static_cast<int>(kLarge));
  ASSERT_EQ(AllowSharedBytes(48 << 10), cudaSuccess);
}

TEST_F(Cudart, OccupancyFollowsSharedMemory) {
  int multiprocessor = 0, blocks = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, 0), cudaSuccess);
  ASSERT_EQ(ResidentBlocksOfReverse(&blocks, 32, 40 << 10), cudaSuccess);
  EXPECT_EQ(blocks, multiprocessor / (41 << 10));  // a block takes 1 KiB more than it asks for
  ASSERT_EQ(ResidentBlocksOfReverse(&blocks, 1024, 0), cudaSuccess);
  int threads = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, 0), cudaSuccess);
  EXPECT_EQ(blocks, threads / 1024);
}

TEST_F(Cudart, LaunchesAreChecked) {
  EXPECT_EQ(LaunchOfThreads(1024, a_), cudaSuccess);
  EXPECT_EQ(LaunchOfThreads(1025, a_), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchOfThreads(0, a_), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
}

TEST_F(Cudart, AGraphReplaysWhatWasCaptured) {
  cudaEvent_t fork = nullptr, join = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(data_, 0, kBytes, a_), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(fork, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, fork, 0), cudaSuccess);
  ASSERT_EQ(Scale(data_, kCount, 2, b_), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(join, b_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(a_, join, 0), cudaSuccess);
  ASSERT_EQ(Scale(data_, kCount, 3, a_), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(a_, &graph), cudaSuccess);
  size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 3u);
  for (const float value : Download()) ASSERT_TRUE(std::isnan(value));  // nothing ran

  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int launch = 0; launch < 3; ++launch) {
    ASSERT_EQ(cudaGraphLaunch(executable, b_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
    EXPECT_EQ(Download(), std::vector<float>(kCount, 4));
  }
  EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
}

TEST_F(Cudart, CapturesRefuseWhatCannotBeReplayed) {
  cudaEvent_t event = nullptr;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(Scale(data_, kCount, 2, a_), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(graph, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);  // or the next launch would seem to fail

  // Work that was forked and not joined.
  ASSERT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, event, 0), cudaSuccess);
  ASSERT_EQ(Scale(data_, kCount, 2, b_), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorStreamCaptureUnjoined);

  // An event of work outside.
  ASSERT_EQ(cudaEventRecord(event, b_), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(a_, event, 0), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
}

TEST_F(Cudart, FaultsAreStickyAndSayWhere) {
  struct Case {
    const char* name;
    cudaError_t code;
    std::function<cudaError_t()> launch;
    const char* text;
  };
  const Case cases[] = {
      {"out of bounds", cudaErrorIllegalAddress, [&] { return WriteAt(data_, kCount, a_); }, "WriteAtKernel"},
      {"far out of bounds", cudaErrorIllegalAddress, [&] { return WriteAt(data_, 1LL << 40, a_); }, "WriteAtKernel"},
      {"null", cudaErrorIllegalAddress, [&] { return WriteAt(nullptr, 0, a_); }, "WriteAtKernel"},
      {"misaligned", cudaErrorMisalignedAddress, [&] { return WriteMisaligned(data_, a_); }, "WriteMisalignedKernel"},
      {"trap", cudaErrorLaunchFailure, [&] { return Trap(a_); }, "TrapKernel"},
  };
  for (const Case& c : cases) {
    SetUp();
    {
      Gate gate(a_);
      EXPECT_EQ(c.launch(), cudaSuccess) << c.name;  // it is found when it runs
    }
    EXPECT_EQ(cudaStreamSynchronize(a_), c.code) << c.name;
    EXPECT_EQ(cudaGetLastError(), c.code) << c.name;
    EXPECT_EQ(cudaGetLastError(), c.code) << c.name;
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 16), c.code) << c.name;
    EXPECT_EQ(Scale(data_, kCount, 2, b_), c.code) << c.name;
    EXPECT_NE(std::string(vgpuFaultText(0)).find(c.text), std::string::npos) << vgpuFaultText(0);
  }
}

TEST_F(Cudart, TensorMapsComeFromTheDriver) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status;
  ASSERT_EQ(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status),
            cudaSuccess);
  ASSERT_EQ(status, cudaDriverEntryPointSuccess);
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  alignas(64) CUtensorMap map;
  const cuuint64_t extents[] = {64, 10}, strides[] = {128};
  const cuuint32_t box[] = {64, 8}, steps[] = {1, 1}, wide[] = {128, 8};
  const auto make = [&](void* address, const cuuint32_t* boxes) {
    return encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, address, extents, strides, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  EXPECT_EQ(make(data_, box), CUDA_SUCCESS);
  EXPECT_EQ(make(data_ + 1, box), CUDA_ERROR_INVALID_VALUE);  // not 16-byte aligned
  EXPECT_EQ(make(data_, wide), CUDA_ERROR_INVALID_VALUE);     // wider than the swizzle
  ASSERT_EQ(cudaGetDriverEntryPointByVersion("cuNothing", &function, 12000, cudaEnableDefault, &status), cudaSuccess);
  EXPECT_EQ(status, cudaDriverEntryPointSymbolNotFound);
}

}  // namespace
}  // namespace tessera::vgpu
