// One decode step on a CUDA device: a few query rows per sequence over a paged cache in device memory, with the
// semantics of kernels/decode.h. Planned once for the most that a step may hold; which rows, pages and ranges a step
// has is read from device arrays, so a captured launch serves every step. Launches are asynchronous, allocate nothing
// and may be captured. Splits are merged in a fixed order: the same plan and the same inputs give the same bits.
#pragma once

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device/decode_params.h"
#include "kernels/decode.h"

namespace tessera::cuda {

struct DecodeDeviceTraits {
  DType dtype = DType::kBFloat16;
  int qk_width = 0;
  int v_width = 0;
  bool value_in_key = false;   // latent cache
  int compute_capability = 0;  // 10 * major + minor of the device
};

// What a step computes. Heads as in DecodeArgs.
struct DecodeShape {
  DType dtype = DType::kBFloat16;
  int qk_width = 0;
  int v_width = 0;
  bool value_in_key = false;
  int heads = 0;
  int kv_heads = 0;
  int first_query_head = 0;
  int first_kv_head = 0;
  int group = 1;
  float scale = 1.0f;
  float soft_cap = 0.0f;  // 0 = off
};

// The most a step may hold. Steps with less cost less.
struct DecodeLimits {
  int sequences = 0;
  int rows_per_sequence = 0;
  int64_t query_rows = 0;   // rows of the query tensor
  int64_t cached_rows = 0;  // of one sequence, about: it sets the number of splits
  int multiprocessors = 0;  // of the device
};

struct DecodePointers {
  ConstDeviceView query;  // [query_rows, heads, qk_width], the cache's dtype
  DeviceView output;      // [query_rows, heads, v_width] fp32, overwritten for the rows of the sequences
  DeviceView lse;         // [query_rows, heads] fp32, natural logarithm, likewise
  CacheLayer cache;       // device memory; page numbers count from its first byte
  const DecodeRows* sequences = nullptr;  // [limits.sequences], device; those without rows are skipped
  const int32_t* pages = nullptr;         // page numbers, device
  const VisibleRows* visible = nullptr;   // ranges of all query rows, device; within the rows that pages cover
  std::byte* workspace = nullptr;         // [DecodeWork::workspace_bytes], device, at a multiple of 16 bytes
};

// One compiled kernel.
struct DecodeInstance {
  DType dtype;
  int qk_width;
  int v_width;
  bool value_in_key;
  int pairs;                                         // of query rows and heads per thread block
  int keys;                                          // per step of a thread block
  int (*launch)(const DecodeParams&, CUstream_st*);  // returns a cudaError_t
};

struct DecodeWork {
  DecodeLimits limits;
  int splits = 1;
  int tiles = 0;
  int64_t workspace_bytes = 0;
  const DecodeInstance* instance = nullptr;
};

// As AttendKernel.
class DecodeDeviceKernel {
 public:
  DecodeDeviceKernel(std::string_view name, std::span<const DecodeInstance> instances, int first_capability,
                     int last_capability)
      : name_(name), instances_(instances), first_capability_(first_capability), last_capability_(last_capability) {}
  std::string_view name() const { return name_; }
  std::string WhyNot(const DecodeDeviceTraits& traits) const;
  const DecodeInstance* Find(DType dtype, int qk_width, int v_width, bool value_in_key) const;

 private:
  const std::string_view name_;
  const std::span<const DecodeInstance> instances_;
  const int first_capability_, last_capability_;
};

std::span<const DecodeDeviceKernel* const> DecodeDeviceKernels();
StatusOr<const DecodeDeviceKernel*> FindDecodeDeviceKernel(const DecodeDeviceTraits& traits,
                                                           std::string_view name = {});

// Pure. InvalidArgument naming the field, its value and what is allowed.
StatusOr<DecodeWork> PlanDecode(const DecodeDeviceKernel& kernel, const DecodeShape& shape, const DecodeLimits& limits);

// InvalidArgument when the cache is not of the shape's dtype or widths; Internal when the device refuses the launch.
Status LaunchDecode(const DecodeDeviceKernel& kernel, const DecodeShape& shape, const DecodeWork& work,
                    const DecodePointers& pointers, CUstream_st* stream);

}  // namespace tessera::cuda
