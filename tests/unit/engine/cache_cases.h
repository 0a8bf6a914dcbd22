// What every paged cache must do, whatever memory its pool is in. A subject wraps one:
//
//   static StatusOr<Subject> Create(const CacheOptions&);
//   cache()                                        the cache
//   Address(layer, sequence, row, kv head, value)  where the key or value of a row lies; null when there is no such row
//   Write(address, bytes)                          in the order of the cache's own copies
//   Pool()                                         the whole pool as it is then, in host memory
//   static constexpr int kOperations               of the model, times those that tests are asked to do
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "runtime/engine/page_table.h"
#include "tests/support/problems.h"

namespace tessera::testing {

template <typename Subject>
class AnyCache : public ::testing::Test {};
TYPED_TEST_SUITE_P(AnyCache);

inline constexpr CacheRowShape kLatent{true, 1, 13, 9, DType::kBFloat16};
inline constexpr CacheRowShape kGrouped{false, 3, 5, 7, DType::kFloat32};

template <typename Subject>
Subject MakeCache(const CacheRowShape& shape, int page_tokens, int64_t pages, int layers = 2) {
  return Subject::Create({shape, layers, page_tokens, pages}).value();
}

template <typename Cache>
Status Grow(Cache& cache, SequenceId id, int64_t rows) {
  const CacheGrowth growth{id, rows};
  return cache.Append({&growth, 1});
}

// Every cell of a row is filled from one stamp, so that a row that moved or was overwritten shows.
inline std::vector<std::byte> Cell(uint64_t stamp, int layer, int head, bool value, const CacheRowShape& shape) {
  std::mt19937_64 noise(stamp * 64 + layer * 16 + head * 2 + value);
  std::vector<std::byte> bytes((value ? shape.value_width : shape.key_width) * SizeInBytes(shape.dtype));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(noise());
  return bytes;
}

template <typename Subject>
void Write(Subject& subject, SequenceId id, int64_t row, uint64_t stamp) {
  const CacheOptions& options = subject.cache().options();
  for (int layer = 0; layer < options.layers; ++layer) {
    for (int head = 0; head < options.shape.kv_heads; ++head) {
      for (const bool value : {false, true}) {
        if (value && options.shape.latent) continue;
        subject.Write(subject.Address(layer, id, row, head, value), Cell(stamp, layer, head, value, options.shape));
      }
    }
  }
}

// Read the way a kernel does: through the layer's strides and the list of pages.
template <typename Cache>
bool Holds(const Cache& cache, const std::vector<std::byte>& pool, SequenceId id, int64_t row, uint64_t stamp) {
  const CacheRowShape& shape = cache.options().shape;
  for (int l = 0; l < cache.options().layers; ++l) {
    const CacheLayer layer = cache.layer(l);
    const int64_t page = cache.pages(id)[row / layer.page_tokens], in_page = row % layer.page_tokens;
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (const bool value : {false, true}) {
        if (value && shape.latent) continue;
        const std::byte* const address =
            value ? layer.value + in_page * layer.value_row_stride + head * layer.value_head_stride
                  : layer.key + in_page * layer.key_row_stride + head * layer.key_head_stride;
        const std::vector<std::byte> cell = Cell(stamp, l, head, value, shape);
        const int64_t offset = address - cache.layer(0).key + page * layer.page_stride;
        if (!std::equal(cell.begin(), cell.end(), pool.begin() + offset)) return false;
      }
    }
  }
  return true;
}

// The oracle keeps a stamp per row and a symbolic page per page_tokens rows, shared the way the header says.
struct CacheOracle {
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

template <typename Subject>
void RunModel(const CacheRowShape& shape, int page_tokens, int64_t pages) {
  const std::string name = absl::StrCat("cache/model/", shape.latent, "/", page_tokens, "/", pages);
  SCOPED_TRACE(name);
  auto generator = GeneratorFor(name);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
  };
  Subject subject = MakeCache<Subject>(shape, page_tokens, pages);
  auto& cache = subject.cache();
  CacheOracle oracle;
  uint64_t stamp = 0;
  int refused = 0, copied = 0;
  const auto some = [&] {
    auto it = oracle.sequences.begin();
    std::advance(it, pick(0, static_cast<int64_t>(oracle.sequences.size()) - 1));
    return it;
  };
  const int operations = Problems(Subject::kOperations);
  for (int op = 0; op < operations; ++op) {
    const int64_t kind = oracle.sequences.empty() ? 0 : pick(0, 11);
    if (kind == 0) {
      ASSERT_TRUE(oracle.sequences.try_emplace(cache.Start()).second);
    } else if (kind <= 5) {
      std::vector<CacheGrowth> growth;
      for (int64_t i = pick(1, 3); i > 0; --i) growth.push_back({some()->first, pick(0, 2 * page_tokens)});
      CacheOracle after = oracle;
      for (const CacheGrowth& grow : growth) after.Grow(after.sequences[grow.sequence], grow.rows, page_tokens);
      const Status status = cache.Append(growth);
      ASSERT_EQ(status.ok(), after.PagesInUse() <= pages) << status;
      if (status.ok()) {
        copied += after.next_page - oracle.next_page;
        for (auto& [id, sequence] : after.sequences) {
          for (size_t row = oracle.sequences[id].stamps.size(); row < sequence.stamps.size(); ++row) {
            Write(subject, id, row, sequence.stamps[row] = ++stamp);
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
        CacheOracle::Sequence copy = parent->second;
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
    const std::vector<std::byte> pool = subject.Pool();
    for (const auto& [id, sequence] : oracle.sequences) {
      ASSERT_EQ(cache.rows(id), static_cast<int64_t>(sequence.stamps.size()));
      ASSERT_EQ(cache.pages(id).size(), sequence.pages.size());
      for (size_t row = 0; row < sequence.stamps.size(); ++row) {
        ASSERT_TRUE(Holds(cache, pool, id, row, sequence.stamps[row])) << "operation " << op << " row " << row;
      }
    }
  }
  EXPECT_GT(refused, 0) << "the pool was never exhausted";
  EXPECT_GT(copied, 0);
  for (const auto& [id, sequence] : oracle.sequences) ASSERT_TRUE(cache.Release(id).ok());
  EXPECT_EQ(cache.free_pages(), pages) << "pages leaked";
}

TYPED_TEST_P(AnyCache, BehavesLikeTheOracle) {
  RunModel<TypeParam>(kLatent, 1, 24);
  RunModel<TypeParam>(kLatent, 4, 12);
  RunModel<TypeParam>(kGrouped, 3, 14);
  RunModel<TypeParam>(kGrouped, 16, 8);
}

TYPED_TEST_P(AnyCache, AppendIsAllOrNothingAndNamesThePages) {
  TypeParam subject = MakeCache<TypeParam>(kLatent, 4, 5);
  auto& cache = subject.cache();
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

TYPED_TEST_P(AnyCache, TwoSharersOfAPageThatBothAppendNeedOneCopy) {
  TypeParam subject = MakeCache<TypeParam>(kLatent, 4, 3);
  auto& cache = subject.cache();
  const SequenceId a = cache.Start();
  ASSERT_TRUE(Grow(cache, a, 4).ok());
  for (int64_t row = 0; row < 4; ++row) Write(subject, a, row, row);
  const SequenceId b = cache.Fork(a, 4).value(), c = cache.Fork(a, 4).value();
  EXPECT_EQ(cache.free_pages(), 2);
  for (SequenceId id : {a, b, c}) ASSERT_TRUE(cache.Truncate(id, 2).ok());
  const CacheGrowth growth[] = {{a, 1}, {b, 1}, {c, 1}};
  ASSERT_TRUE(cache.Append(growth).ok());
  EXPECT_EQ(cache.free_pages(), 0);
  Write(subject, a, 2, 10);
  Write(subject, b, 2, 11);
  Write(subject, c, 2, 12);
  const std::vector<std::byte> pool = subject.Pool();
  for (const auto& [id, last] : {std::pair(a, 10), {b, 11}, {c, 12}}) {
    EXPECT_TRUE(Holds(cache, pool, id, 0, 0) && Holds(cache, pool, id, 1, 1) && Holds(cache, pool, id, 2, last));
  }
  EXPECT_EQ(cache.Fork(a, 3).status().message(), "cache: forking needs 1 pages and 0 of 3 are free");
  EXPECT_TRUE(Holds(cache, subject.Pool(), a, 2, 10));
}

TYPED_TEST_P(AnyCache, UnknownIdsAndRowsAreRefused) {
  TypeParam subject = MakeCache<TypeParam>(kGrouped, 4, 2);
  auto& cache = subject.cache();
  const SequenceId a = cache.Start();
  ASSERT_TRUE(Grow(cache, a, 3).ok());
  EXPECT_EQ(cache.Truncate(a, 4).message(), "cache: truncating sequence 1 to 4 rows; it has 3");
  EXPECT_EQ(cache.Fork(a, 4).status().message(), "cache: forking 4 rows of sequence 1; it has 3");
  EXPECT_EQ(subject.Address(0, a, 3, 0, false), nullptr);
  EXPECT_EQ(subject.Address(2, a, 0, 0, false), nullptr);
  EXPECT_EQ(cache.layer(2).key, nullptr);
  EXPECT_EQ(subject.Address(0, a, 0, 3, true), nullptr);
  EXPECT_NE(subject.Address(1, a, 2, 2, true), nullptr);
  ASSERT_TRUE(cache.Release(a).ok());
  EXPECT_EQ(cache.Release(a).message(), "cache: there is no sequence 1");
  EXPECT_EQ(cache.Truncate(a, 0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.Fork(a, 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache.rows(a), -1);
  EXPECT_TRUE(cache.pages(a).empty());
  EXPECT_EQ(subject.Address(0, a, 0, 0, false), nullptr);
}

TYPED_TEST_P(AnyCache, BytesAreTheFormula) {
  // DeepSeek-V3 whole and in slices, Llama-3-8B: 64 rows a page never need rounding.
  for (const auto& [shape, bytes] : {std::pair(CacheRowShape{true, 1, 576, 512, DType::kBFloat16}, 1152),
                                     {CacheRowShape{true, 1, 320, 256, DType::kBFloat16}, 640},
                                     {CacheRowShape{true, 1, 192, 128, DType::kBFloat16}, 384},
                                     {CacheRowShape{false, 8, 128, 128, DType::kBFloat16}, 4096}}) {
    TypeParam subject = MakeCache<TypeParam>(shape, 64, 5, 3);
    const auto& cache = subject.cache();
    EXPECT_EQ(cache.bytes_per_token_layer(), bytes);
    EXPECT_EQ(cache.bytes(), int64_t{bytes} * 64 * 5 * 3);
  }
  TypeParam odd_subject = MakeCache<TypeParam>(kGrouped, 3, 5, 2);
  const auto& odd = odd_subject.cache();
  EXPECT_EQ(odd.bytes(), (192 + 256) * 5 * 2);  // 3 * 3 * 5 * 4 = 180 and 3 * 3 * 7 * 4 = 252
  for (int l = 0; l < 2; ++l) {
    const CacheLayer layer = odd.layer(l);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.key) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.value) % 64, 0u);
    EXPECT_EQ(layer.page_stride % 64, 0);
  }
  // A rank without heads counts rows in pages of no bytes.
  TypeParam none_subject = MakeCache<TypeParam>({true, 0, 576, 512, DType::kBFloat16}, 64, 2);
  auto& none = none_subject.cache();
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_TRUE(Grow(none, none.Start(), 100).ok());
  EXPECT_EQ(none.free_pages(), 0);
}

TYPED_TEST_P(AnyCache, OptionsAreChecked) {
  const auto text = [](const CacheOptions& options) {
    return std::string(TypeParam::Create(options).status().message());
  };
  EXPECT_EQ(text({kLatent, 0, 64, 1}), "cache: layers is 0; it must be from 1 to 65536");
  EXPECT_EQ(text({kLatent, 1, 0, 1}), "cache: page_tokens is 0; it must be from 1 to 65536");
  EXPECT_EQ(text({kLatent, 1, 64, -1}), "cache: pages is -1; it must be from 0 to 2147483647");
  EXPECT_EQ(text({{true, 1, 8, 9}, 1, 64, 1}),
            "cache: value_width is 9; it must be at most key_width, 8, in a latent cache");
  EXPECT_EQ(TypeParam::Create({{true, 1, 1 << 16, 1}, 1 << 16, 1 << 16, 1 << 30}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

REGISTER_TYPED_TEST_SUITE_P(AnyCache, BehavesLikeTheOracle, AppendIsAllOrNothingAndNamesThePages,
                            TwoSharersOfAPageThatBothAppendNeedOneCopy, UnknownIdsAndRowsAreRefused, BytesAreTheFormula,
                            OptionsAreChecked);

}  // namespace tessera::testing
