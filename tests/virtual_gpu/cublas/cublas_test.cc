// The stand-in for cuBLAS against products computed in fp64.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

float Round(cudaDataType type, float value) {
  if (type == CUDA_R_16BF) return static_cast<float>(static_cast<__nv_bfloat16>(value));
  if (type == CUDA_R_16F) return static_cast<float>(static_cast<__half>(value));
  return value;
}

std::vector<char> Pack(cudaDataType type, const std::vector<float>& values) {
  const size_t bytes = type == CUDA_R_32F ? 4 : 2;
  std::vector<char> packed(values.size() * bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    const __nv_bfloat16 brain(values[i]);
    const __half half(values[i]);
    const void* const from = type == CUDA_R_32F    ? static_cast<const void*>(&values[i])
                             : type == CUDA_R_16BF ? static_cast<const void*>(&brain)
                                                   : static_cast<const void*>(&half);
    std::memcpy(&packed[i * bytes], from, bytes);
  }
  return packed;
}

float Unpack(cudaDataType type, const std::vector<char>& packed, size_t i) {
  if (type == CUDA_R_32F) {
    float value;
    std::memcpy(&value, &packed[i * 4], 4);
    return value;
  }
  __nv_bfloat16 brain;
  __half half;
  std::memcpy(&brain, &packed[i * 2], 2);
  std::memcpy(&half, &packed[i * 2], 2);
  return type == CUDA_R_16BF ? static_cast<float>(brain) : static_cast<float>(half);
}

class Cublas : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasSetStream(handle_, stream_), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    EXPECT_EQ(cublasDestroy(handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }
  void* Upload(const std::vector<char>& data) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, data.size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory, data.data(), data.size(), cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
  }
  cudaStream_t stream_ = nullptr;
  cublasHandle_t handle_ = nullptr;
};

// Every operation and type, pitches beyond the rows, a batch, with and without what is there.
TEST_F(Cublas, ProductsAgreeWithExactArithmetic) {
  constexpr int m = 5, n = 7, k = 9, batch = 3, pitch = 11;
  constexpr size_t kStride = pitch * 11;  // elements of one matrix, with room
  for (const auto& [in, out] :
       {std::pair(CUDA_R_32F, CUDA_R_32F), std::pair(CUDA_R_16BF, CUDA_R_16BF), std::pair(CUDA_R_16BF, CUDA_R_32F),
        std::pair(CUDA_R_16F, CUDA_R_16F), std::pair(CUDA_R_16F, CUDA_R_32F)}) {
    for (const int ops : {0, 1, 2, 3}) {
      for (const float beta : {0.0f, 0.5f}) {
        const std::string name = std::to_string(in) + " " + std::to_string(out) + " " + std::to_string(ops);
        std::mt19937 random(std::hash<std::string>{}(name));
        std::uniform_real_distribution<float> uniform(-1, 1);
        std::vector<float> a(kStride * batch), b(a.size()), c(a.size());
        for (float& value : a) value = Round(in, uniform(random));
        for (float& value : b) value = Round(in, uniform(random));
        for (float& value : c) value = beta == 0 ? NAN : Round(out, uniform(random));
        void *da = Upload(Pack(in, a)), *db = Upload(Pack(in, b)), *dc = Upload(Pack(out, c));
        const float alpha = 1.5f;
        ASSERT_EQ(cublasGemmStridedBatchedEx(handle_, ops & 1 ? CUBLAS_OP_T : CUBLAS_OP_N,
                                             ops & 2 ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k, &alpha, da, in, pitch,
                                             kStride, db, in, pitch, kStride, &beta, dc, out, pitch, kStride, batch,
                                             CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                  CUBLAS_STATUS_SUCCESS);
        std::vector<char> result(c.size() * (out == CUDA_R_32F ? 4 : 2));
        ASSERT_EQ(cudaMemcpyAsync(result.data(), dc, result.size(), cudaMemcpyDeviceToHost, stream_), cudaSuccess);
        ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        const double tolerance = out == CUDA_R_32F ? 1e-5 : out == CUDA_R_16F ? 5e-3 : 4e-2;
        for (int i = 0; i < batch; ++i) {
          for (int column = 0; column < n; ++column) {
            for (int row = 0; row < m; ++row) {
              double sum = 0;
              for (int x = 0; x < k; ++x) {
                const double left = a[i * kStride + (ops & 1 ? x + row * pitch : row + x * pitch)];
                const double right = b[i * kStride + (ops & 2 ? column + x * pitch : x + column * pitch)];
                sum += left * right;
              }
              const size_t at = i * kStride + row + column * pitch;
              const double expected = alpha * sum + (beta == 0 ? 0 : beta * static_cast<double>(c[at]));
              ASSERT_NEAR(Unpack(out, result, at), expected, tolerance) << name << " " << row << " " << column;
            }
          }
        }
        for (void* memory : {da, db, dc}) ASSERT_EQ(cudaFree(memory), cudaSuccess);
      }
    }
  }
}

TEST_F(Cublas, RefusesWhatIsWrong) {
  const float one = 1;
  std::vector<char> host(64);
  void* const memory = Upload(host);
  const auto gemm = [&](void* a, int pitch, cudaDataType type, cublasComputeType_t compute) {
    return cublasGemmEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, a, type, pitch, memory, CUDA_R_32F, 2, &one,
                        memory, CUDA_R_32F, 2, compute, CUBLAS_GEMM_DEFAULT);
  };
  EXPECT_EQ(gemm(memory, 2, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(gemm(memory, 1, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(gemm(memory, 100, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_INVALID_VALUE);  // beyond the allocation
  EXPECT_EQ(gemm(host.data(), 2, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(gemm(memory, 2, CUDA_R_64F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(gemm(memory, 2, CUDA_R_32F, CUBLAS_COMPUTE_16F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cublasSetStream(nullptr, stream_), CUBLAS_STATUS_NOT_INITIALIZED);
  EXPECT_EQ(cublasSetWorkspace(handle_, memory, 64), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cublasSetWorkspace(handle_, memory, 1 << 20), CUBLAS_STATUS_INVALID_VALUE);  // beyond the allocation
  EXPECT_EQ(cublasSetWorkspace(handle_, static_cast<char*>(memory) + 16, 16), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

// Until the stream is set again, after which the library's own serves.
TEST_F(Cublas, TheWorkspaceMustBeThereWhenTheProductIsComputed) {
  const float one = 1, zero = 0;
  void *const workspace = Upload(std::vector<char>(256)), *const memory = Upload(std::vector<char>(64));
  const auto product = [&] {
    EXPECT_EQ(cublasGemmEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, memory, CUDA_R_32F, 2, memory, CUDA_R_32F,
                           2, &zero, memory, CUDA_R_32F, 2, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              CUBLAS_STATUS_SUCCESS);
    return cudaStreamSynchronize(stream_);
  };
  ASSERT_EQ(cublasSetWorkspace(handle_, workspace, 256), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(), cudaSuccess);
  EXPECT_EQ(cudaFree(workspace), cudaSuccess);
  ASSERT_EQ(cublasSetStream(handle_, stream_), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

}  // namespace
