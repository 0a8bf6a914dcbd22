#include "partition/decode.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

DecodeSpec Spec(DecodeMethod method, int ranks, int heads) {
  DecodeSpec spec;
  spec.method = method;
  spec.ranks = ranks;
  spec.rows = 3;
  spec.heads = heads;
  spec.qk_width = 24;
  spec.v_width = 16;
  return spec;
}

void ExpectRefusal(const DecodeSpec& spec, const std::string& text) {
  const Status status = Validate(spec);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status.message() << "\nexpected: " << text;
}

TEST(DecodeMethodNames, RoundTripAndListWhatIsAllowed) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    const auto parsed = ParseDecodeMethod(Name(method));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, method);
  }
  const auto unknown = ParseDecodeMethod("helix");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(std::string(unknown.status().message()),
            "decode method 'helix' is not known; allowed: head, tpla, gather-query, replicated-query, tree");
}

TEST(DecodeSpec, CutsHeadsWithoutDivisibility) {
  const DecodeSpec head = Spec(DecodeMethod::kHead, 3, 5);
  EXPECT_EQ(head.QueryHeads(0), (HeadRange{0, 1}));
  EXPECT_EQ(head.QueryHeads(1), (HeadRange{1, 3}));
  EXPECT_EQ(head.OutputHeads(2), (HeadRange{3, 5}));
  EXPECT_EQ(head.axis(), CacheAxis::kReplicated);

  DecodeSpec tpla = Spec(DecodeMethod::kTpla, 6, 5);
  tpla.groups = 2;
  EXPECT_EQ(tpla.QueryHeads(1), tpla.QueryHeads(4));
  EXPECT_EQ(tpla.QueryHeads(5), (HeadRange{3, 5}));
  EXPECT_EQ(tpla.axis(), CacheAxis::kLatent);

  const DecodeSpec replicated = Spec(DecodeMethod::kReplicatedQuery, 8, 2);
  EXPECT_EQ(replicated.QueryHeads(7), (HeadRange{0, 2}));
  EXPECT_EQ(replicated.OutputHeads(7), (HeadRange{1, 2}));
  EXPECT_TRUE(replicated.OutputHeads(6).empty());
  EXPECT_EQ(replicated.axis(), CacheAxis::kSequence);

  const DecodeSpec tree = Spec(DecodeMethod::kTree, 4, 3);
  EXPECT_EQ(tree.QueryHeads(2), (HeadRange{0, 3}));
  EXPECT_EQ(tree.OutputHeads(2), (HeadRange{0, 3}));
}

TEST(DecodeSpec, RefusalsNameFieldValueAndWhatIsAllowed) {
  DecodeSpec spec = Spec(DecodeMethod::kTpla, 6, 8);
  spec.groups = 4;
  ExpectRefusal(spec, "groups is 4, which does not divide 6 ranks; groups that do: 1, 2, 3, 6");
  spec.groups = 2;
  EXPECT_EQ(Validate(spec), absl::OkStatus());
  spec.kv_heads = 2;
  ExpectRefusal(spec, "kv_heads is 2");
  spec = Spec(DecodeMethod::kTree, 4, 8);
  spec.groups = 2;
  ExpectRefusal(spec, "groups is 2 for method tree; it must be 1");
  spec = Spec(DecodeMethod::kHead, 4, 8);
  spec.kv_heads = 3;
  ExpectRefusal(spec, "heads is 8 and kv_heads 3; heads must be a multiple of kv_heads");
  spec.kv_heads = 9;
  ExpectRefusal(spec, "kv_heads is 9; it must be from 1 to 8");
  spec = Spec(DecodeMethod::kHead, 0, 8);
  ExpectRefusal(spec, "ranks is 0; it must be from 1 to 65536");
  spec = Spec(DecodeMethod::kHead, 1, 8);
  spec.rows = -1;
  ExpectRefusal(spec, "rows is -1");
  spec.rows = 0;
  EXPECT_EQ(Validate(spec), absl::OkStatus());
  spec.qk_width = 0;
  ExpectRefusal(spec, "qk_width is 0");
}

}  // namespace
}  // namespace tessera
