// Seeded random decode steps, run as one rank and judged against fp64.
#pragma once

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "partition/cache_sharding.h"
#include "runtime/engine/decode.h"

namespace tessera::testing {

// Sequences of different lengths (some empty) in a cache of any shape, and a few query rows that see parts of them.
struct DecodeCase {
  struct Sequence {
    int64_t tokens = 0;
    std::vector<Range> visible;    // per query row of the sequence: the tokens it attends
    std::vector<std::byte> key;    // [tokens, kv_heads, key_width] in the cache's dtype
    std::vector<std::byte> value;  // [tokens, kv_heads, value_width]; empty in a latent cache
  };
  DecodeSpec spec;  // with the widths that one rank stores
  DecodeOptions options;
  CacheRowShape shape;  // before sharding
  CacheSharding sharding;
  int page_tokens = 1;
  std::vector<Sequence> sequences;
  std::vector<std::byte> query;  // [rows, heads, key_width], in the order of the sequences

  int64_t rows() const { return spec.rows; }
  std::string ToString() const;
};

// What of a case is not left to chance.
struct DecodeCaseKind {
  bool sixteen_bit = false;                           // bf16 or fp16
  std::optional<CacheRowShape> shape = std::nullopt;  // latent for tpla
};
// A case that `method` can serve on `ranks` ranks: odd heads, grouped heads, every dtype, soft caps.
DecodeCase RandomDecodeCase(DecodeMethod method, int ranks, std::mt19937_64& generator,
                            const DecodeCaseKind& kind = {});
// Another step over the same cache: other queries and visible ranges, of as many rows.
void RedrawStep(DecodeCase& problem, std::mt19937_64& generator);

// What one rank gets, NaN where nothing was written.
struct DecodeResult {
  std::vector<float> output;  // [rows, own output heads, v_width]
  std::vector<float> lse;     // [rows, own output heads]
  ExecutionStats stats;
};
// One rank's end: lays out its part of the cache in shuffled pages with NaN wherever no token lies, creates the
// operator and runs it twice, which must give the same bits.
Status RunDecodeRank(Communicator& comm, const DecodeCase& problem, DecodeResult& result);

// Holds the output of a rank against fp64 on what it should have computed (under tpla: on its slice): root mean square
// and maximum error at most twice those of a plain computation whose output is rounded to the cache's dtype, and
// log-sum-exp within 1e-5. `weights` is what the softmax weights of the plain computation are rounded to before they
// meet the values: where tensor cores multiply, the cache's dtype. Empty when it holds.
std::string Judge(const DecodeCase& problem, int rank, const DecodeResult& result, DType weights = DType::kFloat32);

}  // namespace tessera::testing
