// Ranks arranged on axes: head (all-to-all) x sequence (exchange of K/V or partials), sequence = outer x inner.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

// rank = ((outer * inner_ranks) + inner) * head_ranks + head, so that head groups, which talk most, are neighbours and
// an outer step leaves the node. Any axis may be 1.
struct Mesh {
  int head_ranks = 1;
  int inner_ranks = 1;
  int outer_ranks = 1;

  int size() const { return head_ranks * inner_ranks * outer_ranks; }
  int sequence_ranks() const { return inner_ranks * outer_ranks; }
  int head_of(int rank) const { return rank % head_ranks; }
  int sequence_of(int rank) const { return rank / head_ranks; }  // = outer * inner_ranks + inner
  int rank_of(int sequence, int head) const { return sequence * head_ranks + head; }
  std::string ToString() const;
  friend bool operator==(const Mesh&, const Mesh&) = default;
};

}  // namespace tessera
