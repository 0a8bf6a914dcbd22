#include "runtime/engine/cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>

#include "tests/support/problems.h"

namespace tessera {
namespace {

constexpr CacheRowShape kLatent{true, 1, 13, 9, DType::kBFloat16};
constexpr CacheRowShape kGrouped{false, 3, 5, 7, DType::kFloat32};

PagedCache MakeCache(const CacheRowShape& shape, int page_tokens, int64_t pages, int layers = 2) {
  return PagedCache::Create({shape, layers, page_tokens, pages}).value();
}

Status Grow(PagedCache& cache, SequenceId id, int64_t rows) {
  const CacheGrowth growth{id, rows};
  return cache.Append({&growth, 1});
}

// Every cell of a row is filled from one stamp, so that a row that moved or was overwritten shows.
void Write(PagedCache& cache, SequenceId id, int64_t row, uint64_t stamp) {
  const CacheRowShape& shape = cache.options().shape;
  const size_t element = SizeInBytes(shape.dtype);
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      const auto fill = [&](std::byte* to, size_t bytes, uint64_t kind) {
        std::mt19937_64 noise(stamp * 64 + layer * 16 + head * 2 + kind);
        for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(noise());
      };
      fill(cache.Key(layer, id, row, head), shape.key_width * element, 0);
      if (!shape.latent) fill(cache.Value(layer, id, row, head), shape.value_width * element, 1);
    }
  }
}

// Read the way a kernel does: through the layer's strides and the list of pages.
bool Holds(const PagedCache& cache, SequenceId id, int64_t row, uint64_t stamp) {
  const CacheRowShape& shape = cache.options().shape;
  const size_t element = SizeInBytes(shape.dtype);
  for (int l = 0; l < cache.options().layers; ++l) {
    const CacheLayer layer = cache.layer(l);
    const int64_t page = cache.pages(id)[row / layer.page_tokens];
    for (int head = 0; head < shape.kv_heads; ++head) {
      const auto same = [&](const std::byte* from, size_t bytes, uint64_t kind) {
        std::mt19937_64 noise(stamp * 64 + l * 16 + head * 2 + kind);
        for (size_t i = 0; i < bytes; ++i) {
          if (from[i] != static_cast<std::byte>(noise())) return false;
        }
        return true;
      };
      const int64_t in_page = row % layer.page_tokens;
      if (!same(layer.key + page * layer.page_stride + in_page * layer.key_row_stride + head * layer.key_head_stride,
                shape.key_width * element, 0)) {
        return false;
      }
      if (shape.latent) continue;
      if (!same(layer.value + page * layer.page_stride + in_page * layer.value_row_stride +
                    head * layer.value_head_stride,
                shape.value_width * element, 1)) {
        return false;
      }
    }
  }
  return true;
}

// The oracle keeps a stamp per row and a symbolic page per page_tokens rows, shared the way the header says.
struct Oracle {
  struct Sequence {
    std::vector<uint64_t> stamps;
    std::vector<int> pages;
  };
  std::map<SequenceId, Sequence> sequences;
  int next_page = 0;

  int64_t PagesInUse() const {
    std::set<int> used;
    for (const auto& [id, sequence] : sequences) used.insert(sequence.pages.begin(), sequence.pages.end());
    return static_cast<int64_t>(used.size());
  }
  int Sharers(int page) const {
    int count = 0;
    for (const auto& [id, sequence] : sequences) {
      count += !sequence.pages.empty() && std::count(sequence.pages.begin(), sequence.pages.end(), page) > 0;
    }
    return count;
  }
  void Grow(Sequence& sequence, int64_t rows, int page_tokens) {
    if (rows == 0) return;
    if (sequence.stamps.size() % page_tokens != 0 && Sharers(sequence.pages.back()) > 1) {
      sequence.pages.back() = next_page++;
    }
    sequence.stamps.resize(sequence.stamps.size() + rows);
    while (sequence.pages.size() * page_tokens < sequence.stamps.size()) sequence.pages.push_back(next_page++);
  }
};

void RunModel(const CacheRowShape& shape, int page_tokens, int64_t pages) {
  const std::string name = absl::StrCat("cache/model/", shape.latent, "/", page_tokens, "/", pages);
  SCOPED_TRACE(name);
  auto generator = testing::GeneratorFor(name);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
  };
  PagedCache cache = MakeCache(shape, page_tokens, pages);
  Oracle oracle;
  uint64_t stamp = 0;
  int refused = 0, copied = 0;
  const auto some = [&] {
    auto it = oracle.sequences.begin();
    std::advance(it, pick(0, static_cast<int64_t>(oracle.sequences.size()) - 1));
    return it;
  };
  const int operations = testing::Problems(4000);
  for (int op = 0; op < operations; ++op) {
    const int64_t kind = oracle.sequences.empty() ? 0 : pick(0, 11);
    if (kind == 0) {
      ASSERT_TRUE(oracle.sequences.try_emplace(cache.Start()).second);
    } else if (kind <= 5) {
      std::vector<CacheGrowth> growth;
      for (int64_t i = pick(1, 3); i > 0; --i) growth.push_back({some()->first, pick(0, 2 * page_tokens)});
      Oracle after = oracle;
      for (const CacheGrowth& grow : growth) after.Grow(after.sequences[grow.sequence], grow.rows, page_tokens);
      const Status status = cache.Append(growth);
      ASSERT_EQ(status.ok(), after.PagesInUse() <= pages) << status;
      if (status.ok()) {
        copied += after.next_page - oracle.next_page;
        for (auto& [id, sequence] : after.sequences) {
          for (size_t row = oracle.sequences[id].stamps.size(); row < sequence.stamps.size(); ++row) {
            Write(cache, id, row, sequence.stamps[row] = ++stamp);
          }
        }
        oracle = after;
      } else {
        ++refused;
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      }
    } else if (kind <= 7) {
      const auto parent = some();
      const int64_t rows = pick(0, static_cast<int64_t>(parent->second.stamps.size()));
      const auto child = cache.Fork(parent->first, rows);
      ASSERT_EQ(child.ok(), rows % page_tokens == 0 || oracle.PagesInUse() < pages) << child.status();
      if (child.ok()) {
        Oracle::Sequence copy = parent->second;
        copy.stamps.resize(rows);
        copy.pages.resize((rows + page_tokens - 1) / page_tokens);
        if (rows % page_tokens != 0) copy.pages.back() = oracle.next_page++;
        ASSERT_TRUE(oracle.sequences.try_emplace(*child, copy).second);
      } else {
        EXPECT_EQ(child.status().code(), absl::StatusCode::kResourceExhausted);
      }
    } else if (kind <= 9) {
      const auto it = some();
      const int64_t rows = pick(0, static_cast<int64_t>(it->second.stamps.size()));
      ASSERT_TRUE(cache.Truncate(it->first, rows).ok());
      it->second.stamps.resize(rows);
      it->second.pages.resize((rows + page_tokens - 1) / page_tokens);
    } else {
      const auto it = some();
      ASSERT_TRUE(cache.Release(it->first).ok());
      ASSERT_EQ(cache.Release(it->first).code(), absl::StatusCode::kNotFound);
      oracle.sequences.erase(it);
    }
    ASSERT_EQ(cache.free_pages(), pages - oracle.PagesInUse()) << "operation " << op << " kind " << kind;
    if (op % 8 != 0 && op + 1 != operations) continue;
    for (const auto& [id, sequence] : oracle.sequences) {
      ASSERT_EQ(cache.rows(id), static_cast<int64_t>(sequence.stamps.size()));
      ASSERT_EQ(cache.pages(id).size(), sequence.pages.size());
      for (size_t row = 0; row < sequence.stamps.size(); ++row) {
        ASSERT_TRUE(Holds(cache, id, row, sequence.stamps[row])) << "operation " << op << " row " << row;
      }
    }
  }
  EXPECT_GT(refused, 0) << "the pool was never exhausted";
  EXPECT_GT(copied, 0);
  for (const auto& [id, sequence] : oracle.sequences) ASSERT_TRUE(cache.Release(id).ok());
  EXPECT_EQ(cache.free_pages(), pages) << "pages leaked";
}

TEST(PagedCache, BehavesLikeTheOracle) {
  RunModel(kLatent, 1, 24);
  RunModel(kLatent, 4, 12);
  RunModel(kGrouped, 3, 14);
  RunModel(kGrouped, 16, 8);
}

TEST(PagedCache, AppendIsAllOrNothingAndNamesThePages) {
  PagedCache cache = MakeCache(kLatent, 4, 5);
  const SequenceId a = cache.Start(), b = cache.Start();
  ASSERT_TRUE(Grow(cache, a, 6).ok());
  const CacheGrowth growth[] = {{a, 2}, {b, 9}, {a, 1}};
  const Status status = cache.Append(growth);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "cache: appending needs 4 pages and 3 of 5 are free");
  EXPECT_EQ(cache.rows(a), 6);
  EXPECT_EQ(cache.rows(b), 0);
  EXPECT_EQ(cache.free_pages(), 3);
  const CacheGrowth unknown[] = {{a, 1}, {77, 1}};
  EXPECT_EQ(cache.Append(unknown).message(), "cache: there is no sequence 77");
  EXPECT_EQ(Grow(cache, a, -1).message(), "cache: appending -1 rows to sequence 1; it must be from 0 to 2^40");
  EXPECT_EQ(cache.rows(a), 6);
}

TEST(PagedCache, TwoSharersOfAPageThatBothAppendNeedOneCopy) {
  PagedCache cache = MakeCache(kLatent, 4, 3);
  const SequenceId a = cache.Start();
  ASSERT_TRUE(Grow(cache, a, 4).ok());
  for (int64_t row = 0; row < 4; ++row) Write(cache, a, row, row);
  const SequenceId b = cache.Fork(a, 4).value(), c = cache.Fork(a, 4).value();
  EXPECT_EQ(cache.free_pages(), 2);
  for (SequenceId id : {a, b, c}) ASSERT_TRUE(cache.Truncate(id, 2).ok());
  const CacheGrowth growth[] = {{a, 1}, {b, 1}, {c, 1}};
  ASSERT_TRUE(cache.Append(growth).ok());
  EXPECT_EQ(cache.free_pages(), 0);
  Write(cache, a, 2, 10);
  Write(cache, b, 2, 11);
  Write(cache, c, 2, 12);
  for (const auto& [id, last] : {std::pair(a, 10), {b, 11}, {c, 12}}) {
    EXPECT_TRUE(Holds(cache, id, 0, 0) && Holds(cache, id, 1, 1) && Holds(cache, id, 2, last));
  }
  EXPECT_EQ(cache.Fork(a, 3).status().message(), "cache: forking needs 1 pages and 0 of 3 are free");
  EXPECT_TRUE(Holds(cache, a, 2, 10));
}

TEST(PagedCache, UnknownIdsAndRowsAreRefused) {
  PagedCache cache = MakeCache(kGrouped, 4, 2);
  const SequenceId a = cache.Start();
  ASSERT_TRUE(Grow(cache, a, 3).ok());
  EXPECT_EQ(cache.Truncate(a, 4).message(), "cache: truncating sequence 1 to 4 rows; it has 3");
  EXPECT_EQ(cache.Fork(a, 4).status().message(), "cache: forking 4 rows of sequence 1; it has 3");
  EXPECT_EQ(cache.Key(0, a, 3), nullptr);
  EXPECT_EQ(cache.Key(2, a, 0), nullptr);
  EXPECT_EQ(cache.layer(2).key, nullptr);
  EXPECT_EQ(cache.Value(0, a, 0, 3), nullptr);
  EXPECT_NE(cache.Value(1, a, 2, 2), nullptr);
  ASSERT_TRUE(cache.Release(a).ok());
  EXPECT_EQ(cache.Release(a).message(), "cache: there is no sequence 1");
  EXPECT_EQ(cache.Truncate(a, 0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.Fork(a, 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.rows(a), -1);
  EXPECT_TRUE(cache.pages(a).empty());
  EXPECT_EQ(cache.Key(0, a, 0), nullptr);
}

TEST(PagedCache, BytesAreTheFormula) {
  // DeepSeek-V3 whole and in slices, Llama-3-8B: 64 rows a page never need rounding.
  for (const auto& [shape, bytes] : {std::pair(CacheRowShape{true, 1, 576, 512, DType::kBFloat16}, 1152),
                                     {CacheRowShape{true, 1, 320, 256, DType::kBFloat16}, 640},
                                     {CacheRowShape{true, 1, 192, 128, DType::kBFloat16}, 384},
                                     {CacheRowShape{false, 8, 128, 128, DType::kBFloat16}, 4096}}) {
    const PagedCache cache = MakeCache(shape, 64, 5, 3);
    EXPECT_EQ(cache.bytes_per_token_layer(), bytes);
    EXPECT_EQ(cache.bytes(), int64_t{bytes} * 64 * 5 * 3);
  }
  const PagedCache odd = MakeCache(kGrouped, 3, 5, 2);
  EXPECT_EQ(odd.bytes(), (192 + 256) * 5 * 2);  // 3 * 3 * 5 * 4 = 180 and 3 * 3 * 7 * 4 = 252
  for (int l = 0; l < 2; ++l) {
    const CacheLayer layer = odd.layer(l);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.key) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.value) % 64, 0u);
    EXPECT_EQ(layer.page_stride % 64, 0);
  }
  // A rank without heads counts rows in pages of no bytes.
  PagedCache none = MakeCache({true, 0, 576, 512, DType::kBFloat16}, 64, 2);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_TRUE(Grow(none, none.Start(), 100).ok());
  EXPECT_EQ(none.free_pages(), 0);
}

TEST(PagedCache, OptionsAreChecked) {
  const auto text = [](const CacheOptions& options) {
    return std::string(PagedCache::Create(options).status().message());
  };
  EXPECT_EQ(text({kLatent, 0, 64, 1}), "cache: layers is 0; it must be from 1 to 65536");
  EXPECT_EQ(text({kLatent, 1, 0, 1}), "cache: page_tokens is 0; it must be from 1 to 65536");
  EXPECT_EQ(text({kLatent, 1, 64, -1}), "cache: pages is -1; it must be from 0 to 2147483647");
  EXPECT_EQ(text({{true, 1, 8, 9}, 1, 64, 1}),
            "cache: value_width is 9; it must be at most key_width, 8, in a latent cache");
  EXPECT_EQ(PagedCache::Create({{true, 1, 1 << 16, 1}, 1 << 16, 1 << 16, 1 << 30}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace tessera
