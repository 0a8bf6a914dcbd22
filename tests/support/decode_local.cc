#include "tests/support/decode_local.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

namespace tessera::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Copies the named columns of row `row` of a matrix of `width` columns to `to`.
void CopyColumns(const std::byte* matrix, int64_t row, int width, const std::vector<int>& columns, DType dtype,
                 std::byte* to) {
  const int64_t bytes = static_cast<int64_t>(SizeInBytes(dtype));
  for (size_t i = 0; i < columns.size(); ++i) {
    std::memcpy(to + static_cast<int64_t>(i) * bytes, matrix + (row * width + columns[i]) * bytes, bytes);
  }
}

// Pages anywhere in the pool. Returns the number of pages, of which one belongs to nobody.
int64_t DealPages(const DecodeCase& problem, int rank, LocalDecode& local) {
  int64_t pages = 1;
  for (const DecodeCase::Sequence& s : problem.sequences) {
    const int64_t rows = problem.sharding.LocalRows(rank, s.tokens);
    auto& own = local.pages.emplace_back((rows + problem.page_tokens - 1) / problem.page_tokens);
    for (int32_t& page : own) page = static_cast<int32_t>(pages++);
  }
  std::vector<int32_t> place(pages);
  std::iota(place.begin(), place.end(), 0);
  std::mt19937_64 shuffler(static_cast<uint64_t>(rank) + 7);
  std::shuffle(place.begin(), place.end(), shuffler);
  for (auto& own : local.pages) {
    for (int32_t& page : own) page = place[page];
  }
  return pages;
}

void FillPool(const DecodeCase& problem, int rank, LocalDecode& local) {
  const CacheRowShape& whole = problem.shape;
  const HeadRange kv = problem.sharding.KvHeads(rank, whole.kv_heads);
  const CacheLayer& layer = local.layer;
  const int64_t value_offset = layer.value - layer.key;
  const std::vector<int> key_columns = KeyColumns(problem, rank);
  std::vector<int> value_columns(whole.value_width);
  std::iota(value_columns.begin(), value_columns.end(), 0);
  for (size_t i = 0; i < problem.sequences.size(); ++i) {
    const DecodeCase::Sequence& s = problem.sequences[i];
    for (int64_t row = 0; row < problem.sharding.LocalRows(rank, s.tokens); ++row) {
      const int64_t token = problem.sharding.TokenOf(rank, row);
      const int64_t page = local.pages[i][row / problem.page_tokens];
      for (int head = kv.begin; head < kv.end; ++head) {
        const int64_t from = token * whole.kv_heads + head;
        std::byte* const base = local.pool.data() + page * layer.page_stride;
        const int64_t in_page = row % problem.page_tokens;
        CopyColumns(s.key.data(), from, whole.key_width, key_columns, whole.dtype,
                    base + in_page * layer.key_row_stride + (head - kv.begin) * layer.key_head_stride);
        if (whole.latent) continue;
        CopyColumns(
            s.value.data(), from, whole.value_width, value_columns, whole.dtype,
            base + value_offset + in_page * layer.value_row_stride + (head - kv.begin) * layer.value_head_stride);
      }
    }
  }
}

}  // namespace

std::vector<int> KeyColumns(const DecodeCase& problem, int rank) {
  std::vector<int> columns;
  const int latent = problem.shape.latent ? problem.shape.value_width : 0;
  const Range own = problem.sharding.LatentColumns(rank, latent);
  for (int64_t c = own.begin; c < own.end; ++c) columns.push_back(static_cast<int>(c));
  for (int c = latent; c < problem.shape.key_width; ++c) columns.push_back(c);
  return columns;
}

void ShowVisible(const DecodeCase& problem, int rank, LocalDecode& local) {
  local.visible.clear();
  local.sequences.clear();
  for (const DecodeCase::Sequence& s : problem.sequences) {
    // Tokens of a range that a rank holds are consecutive rows of it.
    auto& visible = local.visible.emplace_back();
    for (const Range& range : s.visible) {
      visible.push_back({problem.sharding.LocalRows(rank, range.begin), problem.sharding.LocalRows(rank, range.end)});
    }
  }
  int64_t first_row = 0;
  for (size_t i = 0; i < problem.sequences.size(); ++i) {
    local.sequences.push_back({first_row, local.pages[i], local.visible[i]});
    first_row += static_cast<int64_t>(local.visible[i].size());
  }
}

void LayOutQuery(const DecodeCase& problem, int rank, LocalDecode& local) {
  const HeadRange heads = problem.spec.QueryHeads(rank);
  const std::vector<int> columns = KeyColumns(problem, rank);
  const DType dtype = problem.shape.dtype;
  const auto row_bytes = static_cast<int64_t>(columns.size() * SizeInBytes(dtype));
  local.query.resize(problem.rows() * heads.size() * row_bytes);
  std::byte* to = local.query.data();
  for (int64_t row = 0; row < problem.rows(); ++row) {
    for (int head = heads.begin; head < heads.end; ++head, to += row_bytes) {
      CopyColumns(problem.query.data(), row * problem.spec.heads + head, problem.shape.key_width, columns, dtype, to);
    }
  }
}

LocalDecode LayOut(const DecodeCase& problem, int rank) {
  LocalDecode local;
  const CacheRowShape& whole = problem.shape;
  const CacheRowShape stored = problem.sharding.LocalShape(rank, whole);
  const int64_t e = static_cast<int64_t>(SizeInBytes(whole.dtype));
  const int64_t pages = DealPages(problem, rank, local);
  CacheLayer& layer = local.layer;
  layer.dtype = whole.dtype;
  layer.kv_heads = stored.kv_heads;
  layer.qk_width = stored.key_width;
  layer.v_width = stored.value_width;
  layer.page_tokens = problem.page_tokens;
  layer.key_head_stride = stored.key_width * e;
  layer.value_head_stride = stored.value_width * e;
  layer.key_row_stride = layer.key_head_stride * std::max(1, stored.kv_heads);
  layer.value_row_stride = layer.value_head_stride * std::max(1, stored.kv_heads);
  if (whole.latent) {
    layer.value_row_stride = layer.key_row_stride;
    layer.value_head_stride = layer.key_head_stride;
  }
  const int64_t key_page = layer.key_row_stride * problem.page_tokens;
  layer.page_stride = key_page + (whole.latent ? 0 : layer.value_row_stride * problem.page_tokens);
  local.pool.resize(pages * layer.page_stride + 64);
  for (size_t i = 0; i < local.pool.size() / e; ++i) {
    StoreFromFloat(local.pool.data(), whole.dtype, static_cast<int64_t>(i), kNaN);
  }
  layer.key = local.pool.data();
  layer.value = whole.latent ? layer.key : layer.key + key_page;
  FillPool(problem, rank, local);
  ShowVisible(problem, rank, local);
  LayOutQuery(problem, rank, local);
  return local;
}

}  // namespace tessera::testing
