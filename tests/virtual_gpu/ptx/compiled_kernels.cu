// What nvcc makes of ordinary code and of inline assembly, for compiled_test.cc.
#include <cuda_bf16.h>

#include <cstdint>

namespace {

__device__ __noinline__ float Blend(float a, int b) {
  return a * static_cast<float>(b) + sinf(a);
}

}  // namespace

// out[i] is function i % 10 of in[i]: [n] fp32 each, device memory.
extern "C" __global__ void Functions(float* out, const float* __restrict__ in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = in[i];
  float r = 0;
  switch (i % 10) {
    case 0:
      r = expf(x);
      break;
    case 1:
      r = logf(fabsf(x) + 1);
      break;
    case 2:
      r = sinf(x * 1e5f);
      break;  // far outside the fast path: the slow one uses an array in local memory
    case 3:
      r = powf(fabsf(x), 2.5f);
      break;
    case 4:
      r = tanhf(x);
      break;
    case 5:
      r = 1 / x;
      break;
    case 6:
      r = Blend(x, i);
      break;
    case 7:
      r = static_cast<float>(sqrt(static_cast<double>(fabsf(x))) * 1.1);
      break;
    case 8:
      r = static_cast<float>((static_cast<long long>(x * 1000) * 1234567891011LL) % 10007);
      break;
    default: {
      float local[8];
      for (int k = 0; k < 8; ++k) local[k] = x * k;
      r = local[static_cast<int>(fabsf(x)) & 7];
    }
  }
  out[i] = r;
}

// sums[block] = the sum of the block's in values: [gridDim.x] fp32, in [gridDim.x * blockDim.x] fp32.
extern "C" __global__ void BlockSum(float* sums, const float* in) {
  __shared__ float partial[32];
  float v = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(~0u, v, offset);
    if (threadIdx.x == 0) atomicAdd(sums + blockIdx.x, v);
  }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace {

constexpr int kStages = 2, kTile = 64;  // of m, n and k; a tile row is 128 bytes of bf16
constexpr uint32_t kTileBytes = kTile * kTile * 2;

__device__ uint32_t Window(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void Wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra "
      "AGAIN;\nDONE:\n}\n" ::"r"(Window(barrier)),
      "r"(parity)
      : "memory");
}

__device__ void Load(void* to, const void* map, int x, int y, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          Window(to)),
      "l"(map), "r"(x), "r"(y), "r"(Window(barrier))
      : "memory");
}

// Rows of 128 bytes, 128-byte swizzle, eight rows every 1024 bytes.
__device__ uint64_t Descriptor(const void* tile) {
  return static_cast<uint64_t>((Window(tile) & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

}  // namespace

struct alignas(64) Map {
  unsigned char bytes[128];
};

// c = a * b^T: a [m][k], b [n][k] bf16 by tensor maps of 64 x 64 boxes, c [m][n] fp32. One block per 64 x 64 tile of c:
// a producer warp, and a warpgroup that multiplies.
extern "C" __global__ void __launch_bounds__(160)
    Multiply(const __grid_constant__ Map a, const __grid_constant__ Map b, float* c, int n, int k) {
  extern __shared__ __align__(1024) unsigned char tiles[];  // kStages of a and b
  __shared__ uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(Window(&full[s])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(Window(&empty[s])));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int row = blockIdx.x * kTile, column = blockIdx.y * kTile;
  if (threadIdx.x >= 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x != 128) return;
    for (int t = 0; t < k / kTile; ++t) {
      const int s = t % kStages;
      if (t >= kStages) Wait(&empty[s], (t / kStages - 1) & 1);
      unsigned char* at = tiles + s * 2 * kTileBytes;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(Window(&full[s])), "r"(2 * kTileBytes)
                   : "memory");
      Load(at, &a, t * kTile, row, &full[s]);
      Load(at + kTileBytes, &b, t * kTile, column, &full[s]);
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  float d[32];
  for (float& v : d) v = 0;
  for (int t = 0; t < k / kTile; ++t) {
    const int s = t % kStages;
    Wait(&full[s], t / kStages & 1);
    const unsigned char* at = tiles + s * 2 * kTileBytes;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int step = 0; step < kTile / 16; ++step) {
      const uint64_t da = Descriptor(at) + step * 2, db = Descriptor(at + kTileBytes) + step * 2;
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
          "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%"
          "29,%30,%31}, "
          "%32, %33, p, 1, 1, 0, 0;\n}\n"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
            "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
            "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
          : "l"(da), "l"(db), "r"(1));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(Window(&empty[s])) : "memory");
  }
  const int r = row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  for (int j = 0; j < 32; ++j) {
    c[(r + (j / 2 % 2) * 8) * n + column + j / 4 * 8 + threadIdx.x % 4 * 2 + j % 2] = d[j];
  }
}

#endif
