// Which part of every sequence's cache each rank holds. Pure arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

// One cached token of one layer, before sharding. A latent cache (MLA) has one row [latent | rope] whose first
// `value_width` = latent columns are the value too; otherwise a token has kv_heads keys and kv_heads values.
struct CacheRowShape {
  bool latent = false;
  int kv_heads = 1;     // 1 for a latent cache
  int key_width = 0;    // latent: C + dr
  int value_width = 0;  // latent: C
  DType dtype = DType::kBFloat16;

  // Elements and bytes of one token of one layer.
  int64_t elements() const { return int64_t{kv_heads} * (latent ? key_width : key_width + value_width); }
  int64_t bytes() const { return elements() * static_cast<int64_t>(SizeInBytes(dtype)); }
  friend bool operator==(const CacheRowShape&, const CacheRowShape&) = default;
};

enum class CacheAxis : uint8_t {
  kReplicated,  // every rank holds everything
  kHead,        // the key/value heads that the rank's query heads read; a latent cache is one such head
  kSequence,    // blocks of tokens, round robin
  kLatent       // a slice of the latent columns and all rope columns (TPLA)
};

struct CacheSharding {
  CacheAxis axis = CacheAxis::kReplicated;
  int ranks = 1;
  int groups = 1;        // kLatent: number of slices g; divides ranks and the latent width. Rank r holds slice r / (ranks / g)
  int block_tokens = 1;  // kSequence: token t lies on rank (t / block_tokens) % ranks
  int query_heads = 1;   // kHead: rank r reads for query heads [r h / P, (r + 1) h / P)

  // Everything below takes a sharding that Validate accepts; fields of other axes than `axis` are not looked at.

  // Number of rows rank `rank` holds of the first `tokens` tokens; its rows are in token order, so this is also the row
  // of token number `tokens` where the rank holds it. A rank without heads has rows too, of no width.
  int64_t LocalRows(int rank, int64_t tokens) const;
  bool Holds(int rank, int64_t token) const;
  // Token of local row `row` of `rank`.
  int64_t TokenOf(int rank, int64_t row) const;
  // Latent columns that the rank holds (all of them except under kLatent).
  Range LatentColumns(int rank, int latent) const;
  HeadRange KvHeads(int rank, int kv_heads) const;
  // The shape of what the rank stores of one token.
  CacheRowShape LocalShape(int rank, const CacheRowShape& shape) const;
  std::string ToString() const;  // "latent:ranks4:groups2"
  friend bool operator==(const CacheSharding&, const CacheSharding&) = default;
};

// InvalidArgument naming the field, its value and what is allowed (for `groups`: which values would work).
Status Validate(const CacheRowShape& shape);
Status Validate(const CacheSharding& sharding, const CacheRowShape& shape);

}  // namespace tessera
