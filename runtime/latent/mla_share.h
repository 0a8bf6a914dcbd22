// The part of one MLA layer that a rank computes, and the weights it needs for that.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "kernels/mla.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

// Expanded: keys and values are projected up from the latents (prefill). Absorbed: queries are projected down to the
// latent space instead, and so are outputs back up (decode).
enum class MlaForm : uint8_t { kExpanded, kAbsorbed };

// Which part of a layer a rank computes.
struct MlaShare {
  HeadRange query_heads;     // whose queries it projects
  HeadRange absorbed_heads;  // whose queries it takes into the latent space (absorbed form)
  HeadRange value_heads;     // whose attention output it takes out of the latent space (absorbed form)
  HeadRange output_heads;    // whose values it projects to the hidden state
  Range latent_columns;      // what it keeps of the latent: [0, C), or a slice (TPLA); the expanded form needs all

  static MlaShare Whole(const MlaShape& shape) {
    const HeadRange all{0, shape.heads};
    return {all, all, all, all, {0, shape.latent}};
  }
};

// A share's matrices, each a batch of [out, in] in its own dtype; empty when the share does not need it. Views of the
// layer's weights where those lie together, otherwise of copies in here.
struct ShareWeights {
  std::vector<MatrixView> kv_down;               // [C + dr, D]: the norm needs every column
  std::vector<MatrixView> query;                 // [query heads (dn + dr), D], without a query rank
  std::vector<MatrixView> query_down, query_up;  // [rq, D], [query heads (dn + dr), rq]
  std::vector<MatrixView> output;                // [D, output heads dv]
  std::vector<MatrixView> kv_up;                 // expanded: [h (dn + dv), C]
  std::vector<MatrixView> absorb;                // absorbed, per absorbed head: [dn, Cs], to be used transposed
  std::vector<MatrixView> value_up;              // absorbed, per value head: [dv, Cs]
  std::vector<float> kv_norm;                    // [C]
  std::vector<float> query_norm;                 // [rq]; empty without a query rank

  std::deque<std::vector<std::byte>> copies;
};

// Errors as Validate. InvalidArgument for a slice of the latent in the expanded form. `weights` outlives the result.
StatusOr<ShareWeights> SelectWeights(const MlaShape& shape, const MlaWeights& weights, const MlaShare& share,
                                     MlaForm form);

}  // namespace tessera
