// The tile unit of AMX: eight registers of 16 rows of 64 bytes, and a product of bf16 pairs. Real instructions here; a
// program with the same interface stands in for them in tests, so that everything built on a tile unit is tested on
// every machine (tests/unit/kernels/amx_software.cc).
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_TILES_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_TILES_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_TILES_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_TILES_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {

// Instructions are written as assembly: intrinsics of GCC 12 have no memory operands, so that stores before a tile load
// may be moved behind it, and its _tile_loadconfig declares 8 of the 64 bytes it reads. Each statement names the memory
// it touches instead of clobbering all of it, which would make the compiler reload every constant of the softmax.
struct AmxTiles {
  struct Row {
    char bytes[64];
  };
  // Memory of unknown extent from an address on.
  using Extent = const char (*)[];

  // All registers as 16 rows of 64 bytes. Begin and End bracket every use in a thread.
  void Begin() {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  void End() { asm volatile("tilerelease"); }

  template <int kTile>
  HWY_INLINE void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Rows are `stride` bytes apart.
  template <int kTile>
  HWY_INLINE void Load(const void* from, size_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride), "m"(*static_cast<Extent>(from)));
  }
  // For what is used once before it is evicted anyway: does not displace the rest of the first-level cache.
  template <int kTile>
  HWY_INLINE void LoadOnce(const void* from, size_t stride) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride),
                 "m"(*static_cast<Extent>(from)));
  }
  template <int kTile>
  HWY_INLINE void Store(void* to, size_t stride) {
    asm volatile("tilestored %%tmm%c1, (%2,%3,1)"
                 : "+m"(*static_cast<char(*)[]>(to))
                 : "i"(kTile), "r"(to), "r"(stride));
  }
  // sum[m][n] += pairs of a[m] . pairs of b[.][n], 16 of them.
  template <int kSum, int kA, int kB>
  HWY_INLINE void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif  // HWY_AVX3
