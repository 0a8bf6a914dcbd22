#include "partition/cache_sharding.h"

#include <algorithm>
#include <numeric>

namespace tessera {
namespace {

// Rank r of `ranks` reads for query heads [r h / P, (r + 1) h / P).
HeadRange QueryHeads(const CacheSharding& sharding, int rank) {
  const auto cut = [&](int64_t r) { return static_cast<int>(r * sharding.query_heads / sharding.ranks); };
  return {cut(rank), cut(rank + 1)};
}

// "1, 2, 4"
std::string Divisors(int value) {
  std::string list;
  for (int i = 1; i <= value; ++i) {
    if (value % i == 0) absl::StrAppend(&list, list.empty() ? "" : ", ", i);
  }
  return list;
}

Status Reject(const char* field, int64_t value, const std::string& allowed) {
  return absl::InvalidArgumentError(absl::StrCat("cache: ", field, " is ", value, "; it must be ", allowed));
}

}  // namespace

int64_t CacheSharding::LocalRows(int rank, int64_t tokens) const {
  if (axis != CacheAxis::kSequence) return tokens;
  const int64_t full_blocks = tokens / block_tokens;
  const int64_t own_blocks = full_blocks / ranks + (full_blocks % ranks > rank ? 1 : 0);
  return own_blocks * block_tokens + (full_blocks % ranks == rank ? tokens % block_tokens : 0);
}

bool CacheSharding::Holds(int rank, int64_t token) const {
  return axis != CacheAxis::kSequence || token / block_tokens % ranks == rank;
}

int64_t CacheSharding::TokenOf(int rank, int64_t row) const {
  if (axis != CacheAxis::kSequence) return row;
  return (row / block_tokens * ranks + rank) * block_tokens + row % block_tokens;
}

Range CacheSharding::LatentColumns(int rank, int latent) const {
  if (axis != CacheAxis::kLatent) return {0, latent};
  const int slice = rank / (ranks / groups);
  const int width = latent / groups;
  return {int64_t{slice} * width, int64_t{slice + 1} * width};
}

HeadRange CacheSharding::KvHeads(int rank, int kv_heads) const {
  if (axis != CacheAxis::kHead) return {0, kv_heads};
  const HeadRange queries = QueryHeads(*this, rank);
  const int group = query_heads / kv_heads;
  if (queries.empty()) return {queries.begin / group, queries.begin / group};
  return {queries.begin / group, (queries.end + group - 1) / group};
}

CacheRowShape CacheSharding::LocalShape(int rank, const CacheRowShape& shape) const {
  CacheRowShape local = shape;
  local.kv_heads = KvHeads(rank, shape.kv_heads).size();
  if (axis == CacheAxis::kLatent) {
    local.value_width = static_cast<int>(LatentColumns(rank, shape.value_width).size());
    local.key_width = local.value_width + shape.key_width - shape.value_width;
  }
  return local;
}

std::string CacheSharding::ToString() const {
  switch (axis) {
    case CacheAxis::kReplicated:
      return absl::StrCat("replicated:ranks", ranks);
    case CacheAxis::kHead:
      return absl::StrCat("head:ranks", ranks, ":heads", query_heads);
    case CacheAxis::kSequence:
      return absl::StrCat("sequence:ranks", ranks, ":block", block_tokens);
    case CacheAxis::kLatent:
      return absl::StrCat("latent:ranks", ranks, ":groups", groups);
  }
  return "unknown";
}

Status Validate(const CacheRowShape& shape) {
  constexpr int kMostHeads = 1 << 16;
  constexpr int kMostWidth = 1 << 16;
  const std::string width = absl::StrCat("from 1 to ", kMostWidth);
  if (shape.latent) {
    if (shape.kv_heads != 1) return Reject("kv_heads", shape.kv_heads, "1 for a latent cache");
  } else if (shape.kv_heads < 1 || shape.kv_heads > kMostHeads) {
    return Reject("kv_heads", shape.kv_heads, absl::StrCat("from 1 to ", kMostHeads));
  }
  if (shape.key_width < 1 || shape.key_width > kMostWidth) return Reject("key_width", shape.key_width, width);
  if (shape.value_width < 1 || shape.value_width > kMostWidth) return Reject("value_width", shape.value_width, width);
  if (shape.latent && shape.value_width > shape.key_width) {
    return Reject("value_width", shape.value_width,
                  absl::StrCat("at most key_width, ", shape.key_width, ", in a latent cache"));
  }
  return absl::OkStatus();
}

Status Validate(const CacheSharding& sharding, const CacheRowShape& shape) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  if (sharding.ranks < 1) return Reject("ranks", sharding.ranks, "at least 1");
  switch (sharding.axis) {
    case CacheAxis::kReplicated:
      break;
    case CacheAxis::kHead:
      if (sharding.query_heads < 1 || sharding.query_heads % shape.kv_heads != 0) {
        return Reject("query_heads", sharding.query_heads,
                      absl::StrCat("a multiple of kv_heads, ", shape.kv_heads, ", and at least that"));
      }
      break;
    case CacheAxis::kSequence:
      if (sharding.block_tokens < 1) return Reject("block_tokens", sharding.block_tokens, "at least 1");
      break;
    case CacheAxis::kLatent: {
      if (!shape.latent) {
        return absl::InvalidArgumentError(
            "cache: axis is latent; a cache of keys and values has no latent columns and must be sharded by heads or "
            "by sequence");
      }
      const int common = std::gcd(sharding.ranks, shape.value_width);
      if (sharding.groups < 1 || common % sharding.groups != 0) {
        return Reject("groups", sharding.groups,
                      absl::StrFormat("one of %s: it divides %d ranks and the latent width %d", Divisors(common),
                                      sharding.ranks, shape.value_width));
      }
      break;
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera
