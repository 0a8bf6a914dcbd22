// The arguments of the attention kernels on the device. Plain data, shared by host wrappers and kernels.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/work_lists.h"

namespace tessera::cuda {

// [rows, heads, width], unit width stride; strides in elements.
template <typename Element>
struct Matrix {
  Element* data;
  int64_t row_stride;
  int64_t head_stride;
};

// A work list in device memory (kernels/cuda/device/work_lists.h).
struct DeviceWork {
  const RowBlock* blocks;
  const Run* runs;
  const int32_t* band_numbers;
  const DeviceBand* bands;
  int32_t block_count;
};

// How scores are made and which heads meet (kernels/attention.h).
struct ScoreParams {
  float scale;
  float soft_cap;       // 0 = off
  float scale_in_cap;   // scale / soft_cap; 0 when off
  const float* slopes;  // [heads], device; null = off
  int32_t position_offset;
  int32_t heads;
  int32_t kv_heads;
  int32_t first_query_head;
  int32_t first_kv_head;
  int32_t group;
  int32_t qk_width;
  int32_t v_width;
};

struct AttendParams {
  Matrix<const uint16_t> query;  // [Sq, heads, qk_width], bf16 or fp16
  Matrix<const uint16_t> key;    // [Sk, kv_heads, qk_width]
  Matrix<const uint16_t> value;  // [Sk, kv_heads, v_width]
  Matrix<float> output;          // [Sq, heads, v_width], read and written
  Matrix<float> lse;             // [Sq, heads], natural logarithm, read and written
  DeviceWork work;               // blocks of query rows
  ScoreParams score;
  // Rows that are read lie in [0, these), and all of those exist.
  int64_t query_rows;
  int64_t key_rows;
  // Rows start at multiples of 16 bytes and hold whole 16-byte pieces.
  bool vector_qk;
  bool vector_v;
};

struct BackwardParams {
  Matrix<const uint16_t> query;            // [Sq, heads, qk_width], bf16 or fp16
  Matrix<const uint16_t> key;              // [Sk, kv_heads, qk_width]
  Matrix<const uint16_t> value;            // [Sk, kv_heads, v_width]
  Matrix<const uint16_t> output_gradient;  // [Sq, heads, v_width]
  Matrix<const float> lse;                 // [Sq, heads], final, natural logarithm
  Matrix<const float> delta;               // [Sq, heads]
  Matrix<float> query_gradient;            // [Sq, heads, qk_width], added to
  Matrix<float> key_gradient;              // [Sk, kv_heads, qk_width], added to
  Matrix<float> value_gradient;            // [Sk, kv_heads, v_width], added to
  DeviceWork by_queries;                   // blocks of query rows
  DeviceWork by_keys;                      // blocks of key rows
  ScoreParams score;
  // As in AttendParams; output gradients go with values.
  int64_t query_rows;
  int64_t key_rows;
  bool vector_qk;
  bool vector_v;
};

}  // namespace tessera::cuda
