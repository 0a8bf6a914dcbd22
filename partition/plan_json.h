// What writing and reading plan JSON share. Private to partition.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "partition/mask.h"

namespace tessera::plan_json {

inline constexpr std::string_view kSchema = "tessera-plan-1";
// By the enumerators' values.
inline constexpr std::array<std::string_view, 2> kPasses = {"forward", "backward"};
inline constexpr std::array<std::string_view, 3> kMethods = {"ring", "allgather", "tree"};

// The mask that has exactly these bands, as Mask::bands() of some mask gave them; InvalidArgument when no slices and
// window give them.
StatusOr<Mask> MaskFromBands(int64_t query_tokens, int64_t key_tokens, std::span<const Band> bands);

}  // namespace tessera::plan_json
