#include "partition/decode.h"

#include <array>

#include "absl/strings/str_join.h"
#include "partition/digest.h"

namespace tessera {
namespace {

// Raised when a planner emits other steps for the same spec.
constexpr int kDecodePlannerVersion = 1;

constexpr std::array<std::string_view, 5> kNames = {"head", "tpla", "gather-query", "replicated-query", "tree"};

// Part `part` of the heads cut into `parts` runs; some are empty when there are more parts than heads.
HeadRange PartOf(HeadRange heads, int part, int parts) {
  const int64_t all = heads.size();
  return {heads.begin + static_cast<int>(all * part / parts), heads.begin + static_cast<int>(all * (part + 1) / parts)};
}

}  // namespace

std::string_view Name(DecodeMethod method) {
  return kNames[static_cast<size_t>(method)];
}

StatusOr<DecodeMethod> ParseDecodeMethod(std::string_view name) {
  for (DecodeMethod method : AllDecodeMethods()) {
    if (Name(method) == name) return method;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("decode method '", std::string(name), "' is not known; allowed: ",
                   absl::StrJoin(kNames, ", ", [](std::string* out, std::string_view known) { out->append(known); })));
}

std::vector<DecodeMethod> AllDecodeMethods() {
  std::vector<DecodeMethod> methods;
  for (size_t i = 0; i < kNames.size(); ++i) methods.push_back(static_cast<DecodeMethod>(i));
  return methods;
}

CacheAxis DecodeSpec::axis() const {
  switch (method) {
    case DecodeMethod::kHead:
      return kv_heads > 1 ? CacheAxis::kHead : CacheAxis::kReplicated;
    case DecodeMethod::kTpla:
      return CacheAxis::kLatent;
    case DecodeMethod::kGatherQuery:
    case DecodeMethod::kReplicatedQuery:
    case DecodeMethod::kTree:
      break;
  }
  return CacheAxis::kSequence;
}

HeadRange DecodeSpec::QueryHeads(int rank) const {
  switch (method) {
    case DecodeMethod::kReplicatedQuery:
    case DecodeMethod::kTree:
      return {0, heads};
    case DecodeMethod::kHead:
    case DecodeMethod::kTpla:
    case DecodeMethod::kGatherQuery:
      break;
  }
  return OutputHeads(rank);
}

HeadRange DecodeSpec::OutputHeads(int rank) const {
  switch (method) {
    case DecodeMethod::kTree:
      return {0, heads};
    case DecodeMethod::kTpla:
      return PartOf({0, heads}, rank % (ranks / groups), ranks / groups);
    case DecodeMethod::kHead:
    case DecodeMethod::kGatherQuery:
    case DecodeMethod::kReplicatedQuery:
      break;
  }
  return PartOf({0, heads}, rank, ranks);
}

HeadRange DecodeSpec::SummandHeads(int rank) const {
  if (method == DecodeMethod::kTree) return PartOf({0, heads}, rank, ranks);
  if (method == DecodeMethod::kTpla) return PartOf(OutputHeads(rank), rank / (ranks / groups), groups);
  return OutputHeads(rank);
}

HeadRange DecodeSpec::ProjectedHeads(int rank) const {
  return method == DecodeMethod::kTpla ? SummandHeads(rank) : QueryHeads(rank);
}

std::vector<int> DecodeSpec::SlicePeers(int rank) const {
  if (method != DecodeMethod::kTpla) return {rank};
  const int places = ranks / groups;
  std::vector<int> peers;
  for (int slice = 0; slice < groups; ++slice) peers.push_back(slice * places + rank % places);
  return peers;
}

CacheSharding ShardingOf(const DecodeSpec& spec, int block_tokens) {
  CacheSharding sharding;
  sharding.axis = spec.axis();
  sharding.ranks = spec.ranks;
  sharding.groups = spec.groups;
  sharding.block_tokens = block_tokens;
  sharding.query_heads = spec.heads;
  return sharding;
}

Status Validate(const DecodeSpec& spec) {
  const auto in_range = [](const char* field, int64_t value, int64_t least, int64_t most) -> Status {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("decode: ", field, " is ", value, "; it must be from ", least, " to ", most));
  };
  constexpr int kMaxRanks = 65536;
  constexpr int kMaxHeads = 1 << 16;
  constexpr int kMaxWidth = 1 << 16;
  constexpr int64_t kMaxRows = int64_t{1} << 24;
  TESSERA_RETURN_IF_ERROR(in_range("ranks", spec.ranks, 1, kMaxRanks));
  TESSERA_RETURN_IF_ERROR(in_range("rows", spec.rows, 0, kMaxRows));
  TESSERA_RETURN_IF_ERROR(in_range("heads", spec.heads, 1, kMaxHeads));
  TESSERA_RETURN_IF_ERROR(in_range("kv_heads", spec.kv_heads, 1, spec.heads));
  TESSERA_RETURN_IF_ERROR(in_range("qk_width", spec.qk_width, 1, kMaxWidth));
  TESSERA_RETURN_IF_ERROR(in_range("v_width", spec.v_width, 1, kMaxWidth));
  if (spec.heads % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "decode: heads is %d and kv_heads %d; heads must be a multiple of kv_heads", spec.heads, spec.kv_heads));
  }
  // PredictedBytes counts at most twice this.
  if (static_cast<double>(spec.rows) * spec.heads * spec.ranks * (spec.qk_width + spec.v_width + 1.0) > 0x1p59) {
    return absl::InvalidArgumentError(
        absl::StrFormat("decode: %d rows of %d heads on %d ranks are more bytes than can be counted", spec.rows,
                        spec.heads, spec.ranks));
  }
  if (spec.method != DecodeMethod::kTpla) {
    if (spec.groups == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("decode: groups is %d for method %s; it must be 1, as only tpla cuts the latent columns",
                        spec.groups, std::string(Name(spec.method))));
  }
  if (spec.kv_heads != 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "decode: method tpla shards the columns of a latent cache, which has one key/value head; kv_heads is %d",
        spec.kv_heads));
  }
  if (spec.groups < 1 || spec.ranks % spec.groups != 0) {
    std::vector<int> divisors;
    for (int g = 1; g <= spec.ranks; ++g) {
      if (spec.ranks % g == 0) divisors.push_back(g);
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("decode: groups is %d, which does not divide %d ranks; groups that do: %s", spec.groups,
                        spec.ranks, absl::StrJoin(divisors, ", ")));
  }
  return absl::OkStatus();
}

uint64_t HashWithoutRows(const DecodeSpec& spec) {
  Digest digest;
  digest.Add(kDecodePlannerVersion).Add(spec.method).Add(spec.ranks).Add(spec.groups).Add(spec.heads);
  digest.Add(spec.kv_heads).Add(spec.qk_width).Add(spec.v_width).Add(spec.dtype);
  return digest.Value();
}

std::string ToString(const DecodeSpec& spec) {
  std::string method(Name(spec.method));
  if (spec.method == DecodeMethod::kTpla) absl::StrAppend(&method, " in ", spec.groups, " groups");
  return absl::StrFormat("%s on %d ranks: %d rows of %d heads (%d key/value), widths %d and %d, %s", method, spec.ranks,
                         spec.rows, spec.heads, spec.kv_heads, spec.qk_width, spec.v_width,
                         std::string(Name(spec.dtype)));
}

}  // namespace tessera
