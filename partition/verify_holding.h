// What the symbolic execution of Verify() knows about rows and heads. Private to Verify().
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "partition/verify_internal.h"

namespace tessera::verify {

// What a run of rows holds. Query, key and value rows hold tokens; partial and result rows hold a bag of contributions
// to the tokens, which are unknown while the bag is empty.
struct Holding {
  bool defined = false;
  bool has_tokens = false;
  int64_t token = 0;
  int64_t stride = 1;
  int bag = Contributions::kEmpty;
  void Advance(int64_t rows) {
    if (has_tokens) token += rows * stride;
  }
  // Whether `rows` rows of this are the tokens first, first + step, ...
  bool Matches(int64_t first, int64_t step, int64_t rows) const {
    return has_tokens && token == first && (rows == 1 || stride == step);
  }
};

// Runs of heads that no region or attend of the plan cuts, so that all heads of a run share their history.
class HeadCuts {
 public:
  void Add(HeadRange heads) {
    if (!heads.empty()) cuts_.insert({heads.begin, heads.end});
  }
  std::vector<HeadRange> Within(HeadRange heads) const {
    std::vector<HeadRange> blocks;
    if (heads.empty()) return blocks;
    for (auto cut = cuts_.find(heads.begin); *cut < heads.end;) {
      const int begin = *cut++;
      blocks.push_back({begin, *cut});
    }
    return blocks;
  }

 private:
  std::set<int> cuts_;
};

}  // namespace tessera::verify
