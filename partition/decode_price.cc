#include "partition/decode_price.h"

#include <algorithm>
#include <bit>

#include "partition/price_links.h"

namespace tessera {
namespace {

double Seconds(const Link& link, double messages, double bytes) {
  return messages * link.latency_seconds + bytes / link.bytes_per_second;
}

// Weights, in elements, that one rank multiplies every row with.
int64_t WeightElements(const DecodeProblem& p, const DecodeSpec& spec, const CacheRowShape& stored, int rank) {
  const int64_t projected = spec.ProjectedHeads(rank).size(), outputs = spec.SummandHeads(rank).size();
  const int64_t hidden = p.hidden, key = p.nope + p.rope;
  const int64_t query = p.query_rank > 0 ? p.query_rank * (hidden + projected * key) : hidden * projected * key;
  const int64_t output = outputs * p.value * hidden;
  if (p.latent == 0) return query + hidden * stored.kv_heads * (key + p.value) + output;
  // Every rank computes the whole latent of a new token: its norm needs all columns. Queries are taken into the rank's
  // columns (absorbed) and outputs out of them; under TPLA those of all heads it attends for.
  const int64_t absorbed = spec.QueryHeads(rank).size();
  const int64_t values = spec.method == DecodeMethod::kTpla ? spec.OutputHeads(rank).size() : outputs;
  const int64_t latent = hidden * (p.latent + p.rope);
  return query + latent + stored.value_width * (absorbed * p.nope + values * p.value) + output;
}

struct CacheWork {
  int64_t bytes = 0;
  double flops = 0;
};
CacheWork WorkOf(const DecodeProblem& p, const DecodeSpec& spec, int rank) {
  const CacheSharding sharding = ShardingOf(spec, p.block_tokens);
  const int64_t rows = sharding.LocalRows(rank, p.context_tokens);
  // Token-sharded caches meet all heads, however the queries got there.
  const int heads = spec.axis() == CacheAxis::kSequence ? spec.heads : spec.QueryHeads(rank).size();
  CacheWork work;
  work.bytes = p.batch * rows * sharding.LocalShape(rank, p.row_shape()).bytes();
  work.flops = 2.0 * static_cast<double>(p.rows()) * heads * static_cast<double>(rows) * (spec.qk_width + spec.v_width);
  return work;
}

double AttendSecondsOf(const DecodeProblem& p, const DecodeSpec& spec, int rank, const MachineModel& machine) {
  const CacheWork work = WorkOf(p, spec, rank);
  if (work.flops == 0) return 0;  // a rank without heads does not even read
  return std::max(static_cast<double>(work.bytes) / machine.memory_bytes_per_second,
                  work.flops / machine.flops_per_second);
}

// What the plan's messages take, as Simulate has it, from the busiest rank's share.
double ExchangeSeconds(const DecodeSpec& spec, const MachineModel& machine) {
  if (spec.ranks == 1 || spec.axis() != CacheAxis::kSequence || spec.rows == 0) return 0;
  const Link link = LinkBetween(machine, 0, spec.ranks - 1);
  const double others = spec.ranks - 1, step = machine.step_overhead_seconds;
  const double rows = static_cast<double>(spec.rows), row_head = rows * (spec.v_width + 1) * 4.0;
  if (spec.method == DecodeMethod::kTree) {
    const double depth = std::bit_width(static_cast<unsigned>(spec.ranks - 1));
    return 2 * depth * (Seconds(link, 1, row_head * spec.heads) + 2 * step);  // output and log-sum-exp: two messages
  }
  const double own = (spec.heads + spec.ranks - 1) / spec.ranks;
  const double busiest = std::max(own * others, static_cast<double>(spec.heads));
  const double partials = Seconds(link, others, row_head * busiest) + step;
  if (spec.method == DecodeMethod::kReplicatedQuery) return partials;
  const double query = rows * spec.qk_width * static_cast<double>(SizeInBytes(spec.dtype));
  return partials + Seconds(link, others, query * busiest) + step;
}

// TPLA: ranks that serve the same heads gather their queries and add up their slices' values, each straight from every
// one of them to every other, in fp32.
void PriceSlices(const DecodeProblem& p, const MachineModel& machine, DecodePrice& price) {
  const DecodeSpec& spec = price.spec;
  if (spec.groups == 1 || p.hidden == 0) return;
  const int64_t width = p.nope + p.rope + p.value, others = spec.groups - 1;
  price.slice_bytes = others * p.rows() * spec.heads * width * 4;
  const int64_t busiest = (spec.heads + spec.ranks - 1) / spec.ranks;
  // The link to the peer that is furthest off: slices lie ranks / groups apart.
  price.slice_seconds = Seconds(LinkBetween(machine, 0, spec.ranks - spec.ranks / spec.groups), 2.0 * others,
                                static_cast<double>(others * p.rows() * busiest * width * 4));
}

}  // namespace

CacheRowShape DecodeProblem::row_shape() const {
  if (latent > 0) return {true, 1, latent + rope, latent, dtype};
  return {false, kv_heads, nope + rope, value, dtype};
}

std::string DecodeProblem::ToString() const {
  std::string cache =
      latent > 0 ? absl::StrCat("latent ", latent, "+", rope) : absl::StrCat(kv_heads, " key/value heads");
  return absl::StrFormat("%d sequences of %d tokens, %d new each; hidden %d, %d heads, %s, widths %d+%d and %d, %s",
                         batch, context_tokens, query_tokens, hidden, heads, cache, nope, rope, value,
                         std::string(Name(dtype)));
}

Status Validate(const DecodeProblem& problem) {
  constexpr int64_t kMost = int64_t{1} << 32;
  struct Field {
    const char* name;
    int64_t value, least, most;
  };
  for (const Field& f : {Field{"context_tokens", problem.context_tokens, 0, kMost},
                         {"batch", problem.batch, 1, 1 << 16},
                         {"query_tokens", problem.query_tokens, 1, 1 << 8},
                         {"hidden", problem.hidden, 0, 1 << 18},
                         {"query_rank", problem.query_rank, 0, 1 << 24},
                         {"latent", problem.latent, 0, 1 << 15},
                         {"nope", problem.nope, 0, 1 << 14},
                         {"rope", problem.rope, 0, 1 << 14},
                         {"value", problem.value, 1, 1 << 15},
                         {"block_tokens", problem.block_tokens, 1, 1 << 30}}) {
    if (f.value >= f.least && f.value <= f.most) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("decode problem: ", f.name, " is ", f.value, "; it must be from ", f.least, " to ", f.most));
  }
  if (problem.latent > 0 && problem.kv_heads != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("decode problem: kv_heads is ", problem.kv_heads, "; a latent cache has one key/value head"));
  }
  if (problem.nope + problem.rope < 1) {
    return absl::InvalidArgumentError("decode problem: nope and rope are 0; keys must have a width");
  }
  const CacheRowShape row = problem.row_shape();
  if (static_cast<double>(problem.batch) * static_cast<double>(problem.context_tokens) *
          static_cast<double>(row.elements()) >
      0x1p60) {
    return absl::InvalidArgumentError(
        absl::StrFormat("decode problem: %d sequences of %d tokens are more cache than can be counted", problem.batch,
                        problem.context_tokens));
  }
  return absl::OkStatus();
}

StatusOr<DecodeSpec> MakeDecodeSpec(const DecodeProblem& problem, DecodeMethod method, int ranks, int groups) {
  TESSERA_RETURN_IF_ERROR(Validate(problem));
  if (method == DecodeMethod::kTpla && problem.latent == 0) {
    return absl::InvalidArgumentError("decode: method tpla shards the columns of a latent cache; latent is 0");
  }
  DecodeSpec spec;
  spec.method = method;
  spec.ranks = ranks;
  spec.groups = groups;
  spec.rows = problem.rows();
  spec.heads = problem.heads;
  spec.kv_heads = problem.kv_heads;
  spec.qk_width = problem.row_shape().key_width;
  spec.v_width = problem.row_shape().value_width;
  spec.dtype = problem.dtype;
  TESSERA_RETURN_IF_ERROR(Validate(spec));
  const CacheSharding sharding = ShardingOf(spec, problem.block_tokens);
  TESSERA_RETURN_IF_ERROR(Validate(sharding, problem.row_shape()));
  const CacheRowShape stored = sharding.LocalShape(0, problem.row_shape());
  spec.qk_width = stored.key_width;
  spec.v_width = stored.value_width;
  return spec;
}

std::vector<double> AttendSeconds(const DecodeProblem& problem, const DecodeSpec& spec, const MachineModel& machine) {
  std::vector<double> seconds;
  for (int rank = 0; rank < spec.ranks; ++rank) seconds.push_back(AttendSecondsOf(problem, spec, rank, machine));
  return seconds;
}

StatusOr<DecodePrice> PriceDecode(const DecodeProblem& problem, DecodeMethod method, int ranks, int groups,
                                  const MachineModel& machine) {
  TESSERA_ASSIGN_OR_RETURN(const DecodeSpec spec, MakeDecodeSpec(problem, method, ranks, groups));
  DecodePrice price;
  price.spec = spec;
  price.exact = method != DecodeMethod::kTpla || groups == 1;
  const CacheSharding sharding = ShardingOf(spec, problem.block_tokens);
  const int64_t element = static_cast<int64_t>(SizeInBytes(problem.dtype));
  const double rows = static_cast<double>(problem.rows());
  int64_t most_row_bytes = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const CacheRowShape stored = sharding.LocalShape(rank, problem.row_shape());
    price.attention_seconds = std::max(price.attention_seconds, AttendSecondsOf(problem, spec, rank, machine));
    price.cache_bytes = std::max(price.cache_bytes, WorkOf(problem, spec, rank).bytes);
    most_row_bytes = std::max(most_row_bytes, stored.bytes());
    if (problem.hidden == 0) continue;
    const int64_t weights = WeightElements(problem, spec, stored, rank);
    price.weight_bytes = std::max(price.weight_bytes, weights * element);
    price.projection_seconds =
        std::max({price.projection_seconds, static_cast<double>(weights * element) / machine.memory_bytes_per_second,
                  2 * rows * static_cast<double>(weights) / machine.projection_flops_per_second});
  }
  price.cache_bytes_per_token =
      problem.context_tokens > 0
          ? static_cast<double>(price.cache_bytes) / static_cast<double>(problem.batch * problem.context_tokens)
          : static_cast<double>(most_row_bytes);
  price.exchange_seconds = ExchangeSeconds(spec, machine);
  price.exchange_bytes = PredictedBytes(spec);
  PriceSlices(problem, machine, price);
  if (ranks > 1 && problem.hidden > 0) {
    // A reduce-scatter and an all-gather, each straight from every rank to every other.
    const double others = ranks - 1;
    const double bytes = rows * problem.hidden * 4;
    price.all_reduce_seconds = 2 * Seconds(LinkBetween(machine, 0, ranks - 1), others, bytes * others / ranks);
    price.all_reduce_bytes = 2 * (int64_t{ranks} - 1) * problem.rows() * problem.hidden * 4;
  }
  return price;
}

StatusOr<std::vector<DecodePrice>> PriceDecodeMethods(const DecodeProblem& problem, int ranks,
                                                      const MachineModel& machine) {
  std::vector<DecodePrice> prices;
  for (const DecodeMethod method : AllDecodeMethods()) {
    if (method != DecodeMethod::kTpla) {
      TESSERA_ASSIGN_OR_RETURN(prices.emplace_back(), PriceDecode(problem, method, ranks, 1, machine));
      continue;
    }
    for (int groups = 2; groups <= ranks && problem.latent > 0; ++groups) {
      if (ranks % groups != 0 || problem.latent % groups != 0) continue;
      TESSERA_ASSIGN_OR_RETURN(prices.emplace_back(), PriceDecode(problem, method, ranks, groups, machine));
    }
  }
  return prices;
}

StatusOr<DecodePrice> ChooseDecodeMethod(const DecodeProblem& problem, int ranks, const MachineModel& machine) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<DecodePrice> prices, PriceDecodeMethods(problem, ranks, machine));
  std::erase_if(prices, [](const DecodePrice& price) { return !price.exact; });
  return *std::min_element(prices.begin(), prices.end(),
                           [](const DecodePrice& a, const DecodePrice& b) { return a.seconds() < b.seconds(); });
}

}  // namespace tessera
