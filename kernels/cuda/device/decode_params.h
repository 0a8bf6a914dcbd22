// The arguments of the decode kernels on the device. Plain data, shared by host wrappers and kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"

namespace tessera::cuda {

// One sequence of a decode step (DecodeSequence of kernels/decode.h, with places in device arrays).
struct DecodeRows {
  int32_t first_query_row;  // in the query tensor
  int32_t rows;             // query rows; 0 = nothing to do
  int32_t first_page;       // in the array of page numbers
  int32_t first_visible;    // in the array of visible ranges, one per query row
};

// Local cache rows [begin, end) that a query row attends. As Range of runtime/base/geometry.h.
struct VisibleRows {
  int64_t begin;
  int64_t end;
};

struct DecodeParams {
  Matrix<const uint16_t> query;  // [rows, heads, qk_width], bf16 or fp16
  Matrix<float> output;          // [rows, heads, v_width], overwritten
  Matrix<float> lse;             // [rows, heads], natural logarithm, overwritten
  // Paged rows, as CacheLayer of kernels/decode.h; strides in bytes.
  const std::byte* key;
  const std::byte* value;
  int64_t page_stride, key_row_stride, key_head_stride, value_row_stride, value_head_stride;
  int32_t page_tokens;
  const DecodeRows* sequences;  // [sequences]
  const int32_t* pages;         // page numbers of all sequences
  const VisibleRows* visible;   // ranges of all query rows
  float* split_output;          // [splits, rows, heads, v_width], null with one split
  float* split_lse;             // [splits, rows, heads], likewise
  int64_t query_rows;           // rows of a split
  int32_t sequence_count;
  int32_t rows_per_sequence;  // at most
  int32_t splits;
  int32_t tiles;      // of query rows and heads per sequence and key head
  ScoreParams score;  // without slopes
  // As in AttendParams.
  bool vector_query;
  bool vector_key;
  bool vector_value;
};

}  // namespace tessera::cuda
