// Small programs of two streams, each right or with one order missing. Under the stand-in that is built with
// ThreadSanitizer the right one ends quietly and the others are reported, whatever the timing was.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/virtual_gpu/cudart/test_kernels.h"

namespace {

constexpr int kCount = 4096;
constexpr size_t kBytes = kCount * sizeof(float);

void Check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) std::printf("%s: %s\n", what, cudaGetErrorName(code));
}
#define CHECK(call) Check(call, #call)

// `after` waits for what `before` has so far, unless the test leaves it out.
void Order(cudaStream_t before, cudaStream_t after, bool leave_out) {
  cudaEvent_t event = nullptr;
  CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  CHECK(cudaEventRecord(event, before));
  if (!leave_out) CHECK(cudaStreamWaitEvent(after, event, 0));
  CHECK(cudaEventDestroy(event));
}

}  // namespace

int main(int argc, char** argv) {
  using tessera::vgpu::Scale;
  const std::string bug = argc > 1 ? argv[1] : "";
  cudaStream_t compute = nullptr, communicate = nullptr;
  CHECK(cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking));
  CHECK(cudaStreamCreateWithFlags(&communicate, cudaStreamNonBlocking));
  float *data = nullptr, *copy = nullptr, *pinned = nullptr;
  CHECK(cudaMallocHost(reinterpret_cast<void**>(&pinned), kBytes));
  std::memset(pinned, 0, kBytes);
  CHECK(cudaMallocAsync(reinterpret_cast<void**>(&data), kBytes, compute));
  CHECK(cudaMallocAsync(reinterpret_cast<void**>(&copy), kBytes, communicate));
  CHECK(cudaMemcpyAsync(data, pinned, kBytes, cudaMemcpyHostToDevice, compute));
  // A kernel writes, the other stream copies, the first writes again: two orders.
  for (int step = 0; step < 3; ++step) {
    CHECK(Scale(data, kCount, 2, compute));
    Order(compute, communicate, bug == "copy-too-early");
    CHECK(cudaMemcpyAsync(copy, data, kBytes, cudaMemcpyDeviceToDevice, communicate));
    Order(communicate, compute, bug == "overwrite-too-early");
  }
  // Kernel against kernel, on the copy.
  CHECK(Scale(copy, kCount, 2, communicate));
  Order(communicate, compute, bug == "kernel-too-early");
  CHECK(Scale(copy, kCount, 2, compute));
  Order(compute, communicate, bug == "free-too-early");
  CHECK(cudaMemcpyAsync(pinned, data, kBytes, cudaMemcpyDeviceToHost, compute));
  CHECK(cudaFreeAsync(copy, communicate));
  if (bug != "host-too-early") CHECK(cudaStreamSynchronize(compute));
  float sum = 0;
  for (int i = 0; i < kCount; ++i) sum += pinned[i];
  CHECK(cudaDeviceSynchronize());
  std::printf("done, %g\n", sum);
  return 0;
}
