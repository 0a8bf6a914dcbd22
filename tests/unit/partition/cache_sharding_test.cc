#include "partition/cache_sharding.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace tessera {
namespace {

constexpr CacheRowShape kLatentShape{true, 1, 24 + 5, 24, DType::kBFloat16};
CacheRowShape HeadShape(int kv_heads) {
  return {false, kv_heads, 12, 7, DType::kFloat32};
}

TEST(CacheSharding, RowsAreTheHeldTokensInOrder) {
  for (int ranks : {1, 2, 3, 4, 7, 8, 64}) {
    for (int block : {1, 2, 3, 16}) {
      for (CacheAxis axis : {CacheAxis::kReplicated, CacheAxis::kHead, CacheAxis::kSequence, CacheAxis::kLatent}) {
        const CacheSharding sharding{axis, ranks, 1, block, 5};
        std::vector<std::vector<int64_t>> held(ranks);
        for (int64_t token = 0; token < 150; ++token) {
          int holders = 0;
          for (int r = 0; r < ranks; ++r) {
            ASSERT_EQ(sharding.LocalRows(r, token), static_cast<int64_t>(held[r].size())) << sharding.ToString();
            const bool holds = axis != CacheAxis::kSequence || token / block % ranks == r;
            ASSERT_EQ(sharding.Holds(r, token), holds) << sharding.ToString();
            if (!holds) continue;
            ++holders;
            ASSERT_EQ(sharding.TokenOf(r, static_cast<int64_t>(held[r].size())), token) << sharding.ToString();
            held[r].push_back(token);
          }
          ASSERT_EQ(holders, axis == CacheAxis::kSequence ? 1 : ranks);
        }
      }
    }
  }
}

TEST(CacheSharding, RanksHoldTheHeadsTheirQueriesRead) {
  for (int ranks : {1, 2, 3, 5, 8, 64}) {
    for (int kv_heads : {1, 2, 3, 8}) {
      for (int group : {1, 2, 5, 16}) {
        const int heads = kv_heads * group;
        const CacheSharding sharding{CacheAxis::kHead, ranks, 1, 1, heads};
        ASSERT_TRUE(Validate(sharding, HeadShape(kv_heads)).ok());
        for (int r = 0; r < ranks; ++r) {
          std::set<int> read;
          for (int h = 0; h < heads; ++h) {
            if (h >= r * heads / ranks && h < (r + 1) * heads / ranks) read.insert(h / group);
          }
          const HeadRange held = sharding.KvHeads(r, kv_heads);
          std::set<int> expected;
          for (int j = held.begin; j < held.end; ++j) expected.insert(j);
          ASSERT_EQ(expected, read) << sharding.ToString() << " kv_heads " << kv_heads << " rank " << r;
          ASSERT_GE(held.size(), 0);
          ASSERT_LE(held.end, kv_heads);
          const CacheRowShape local = sharding.LocalShape(r, HeadShape(kv_heads));
          ASSERT_EQ(local.kv_heads, held.size());
          ASSERT_EQ(local.bytes(), held.size() * (12 + 7) * 4);
        }
      }
    }
  }
}

TEST(CacheSharding, SlicesCoverTheLatentOncePerGroup) {
  for (int ranks : {1, 2, 3, 4, 6, 8, 24}) {
    for (int groups : {1, 2, 3, 4, 8, 24}) {
      const CacheSharding sharding{CacheAxis::kLatent, ranks, groups};
      if (ranks % groups != 0) {
        ASSERT_FALSE(Validate(sharding, kLatentShape).ok());
        continue;
      }
      ASSERT_TRUE(Validate(sharding, kLatentShape).ok());
      std::vector<int> holders(24);
      for (int r = 0; r < ranks; ++r) {
        const Range columns = sharding.LatentColumns(r, 24);
        ASSERT_EQ(columns.size(), 24 / groups);
        for (int64_t c = columns.begin; c < columns.end; ++c) ++holders[c];
        if (r > 0) {
          const Range before = sharding.LatentColumns(r - 1, 24);
          ASSERT_EQ(columns.begin, r % (ranks / groups) == 0 ? before.end : before.begin);
        }
        const CacheRowShape local = sharding.LocalShape(r, kLatentShape);
        ASSERT_EQ(local.value_width, 24 / groups);
        ASSERT_EQ(local.key_width, 24 / groups + 5);
      }
      for (int count : holders) ASSERT_EQ(count, ranks / groups);
    }
  }
}

// LATENT shapes of DeepSeek-V3: the byte counts everyone quotes.
TEST(CacheSharding, BytesPerTokenAreTheFormulas) {
  const CacheRowShape mla{true, 1, 576, 512, DType::kBFloat16};
  EXPECT_EQ(mla.bytes(), 1152);
  for (const auto& [groups, bytes] : {std::pair(1, 1152), {2, 640}, {4, 384}, {8, 256}}) {
    EXPECT_EQ((CacheSharding{CacheAxis::kLatent, 8, groups}.LocalShape(3, mla).bytes()), bytes);
  }
  const CacheRowShape gqa{false, 8, 128, 128, DType::kBFloat16};
  EXPECT_EQ(gqa.bytes(), 4096);
  EXPECT_EQ((CacheSharding{CacheAxis::kHead, 8, 1, 1, 32}.LocalShape(3, gqa).bytes()), 512);
  EXPECT_EQ((CacheSharding{CacheAxis::kHead, 8, 1, 1, 32}.LocalShape(3, mla).bytes()), 1152);
  EXPECT_EQ((CacheSharding{CacheAxis::kHead, 64, 1, 1, 32}.LocalShape(0, gqa).bytes()), 0);
}

TEST(CacheSharding, RefusalsNameFieldValueAndWhatIsAllowed) {
  const auto text = [](const CacheSharding& sharding, const CacheRowShape& shape) {
    return std::string(Validate(sharding, shape).message());
  };
  EXPECT_EQ(text({CacheAxis::kLatent, 8, 3}, kLatentShape),
            "cache: groups is 3; it must be one of 1, 2, 4, 8: it divides 8 ranks and the latent width 24");
  EXPECT_EQ(text({CacheAxis::kLatent, 5, 0}, kLatentShape),
            "cache: groups is 0; it must be one of 1: it divides 5 ranks and the latent width 24");
  EXPECT_EQ(
      text({CacheAxis::kLatent, 2, 2}, HeadShape(2)),
      "cache: axis is latent; a cache of keys and values has no latent columns and must be sharded by heads or by "
      "sequence");
  EXPECT_EQ(text({CacheAxis::kHead, 2, 1, 1, 7}, HeadShape(2)),
            "cache: query_heads is 7; it must be a multiple of kv_heads, 2, and at least that");
  EXPECT_EQ(text({CacheAxis::kSequence, 2, 1, 0}, HeadShape(2)), "cache: block_tokens is 0; it must be at least 1");
  EXPECT_EQ(text({CacheAxis::kReplicated, 0}, HeadShape(2)), "cache: ranks is 0; it must be at least 1");
  EXPECT_EQ(text({}, HeadShape(0)), "cache: kv_heads is 0; it must be from 1 to 65536");
  EXPECT_EQ(text({}, {true, 2, 9, 8}), "cache: kv_heads is 2; it must be 1 for a latent cache");
  EXPECT_EQ(text({}, {true, 1, 8, 9}), "cache: value_width is 9; it must be at most key_width, 8, in a latent cache");
  EXPECT_EQ(text({}, {false, 1, 0, 9}), "cache: key_width is 0; it must be from 1 to 65536");
}

TEST(CacheSharding, PrintsTheFieldsOfItsAxis) {
  EXPECT_EQ((CacheSharding{CacheAxis::kReplicated, 4}.ToString()), "replicated:ranks4");
  EXPECT_EQ((CacheSharding{CacheAxis::kHead, 4, 1, 1, 16}.ToString()), "head:ranks4:heads16");
  EXPECT_EQ((CacheSharding{CacheAxis::kSequence, 4, 1, 64}.ToString()), "sequence:ranks4:block64");
  EXPECT_EQ((CacheSharding{CacheAxis::kLatent, 4, 2}.ToString()), "latent:ranks4:groups2");
}

}  // namespace
}  // namespace tessera
