#include "collectives/arguments.h"

#include <algorithm>

namespace tessera::internal {

Status CheckPeer(int peer, int size) {
  if (peer >= 0 && peer < size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("peer ", peer, " is not a rank of a group of ", size));
}

Status CheckCounts(std::string_view what, std::span<const int64_t> counts, int size) {
  if (static_cast<int>(counts.size()) != size) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(what), " has ", counts.size(), " entries for a group of ", size));
  }
  if (std::any_of(counts.begin(), counts.end(), [](int64_t count) { return count < 0; })) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(what), " has a negative entry"));
  }
  return absl::OkStatus();
}

Status CheckLength(std::string_view what, int64_t actual, int64_t expected) {
  if (actual == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(what), " has length ", actual, ", but the counts ask for ", expected));
}

}  // namespace tessera::internal
