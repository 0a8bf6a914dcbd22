// Ranks tell each other how a local step went, so that an error on one ends all of them instead of leaving them
// waiting.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/base/status.h"

namespace tessera {

// `what` says in errors what the ranks were doing before they meet here: "loading tensors".

// Collective. Every rank's text, in rank order.
StatusOr<std::vector<std::string>> AllGatherText(Communicator& comm, std::string_view text, std::string_view what);

// Collective. Every rank's value, in rank order.
template <typename T>
requires std::is_trivially_copyable_v<T> StatusOr<std::vector<T>> AllGatherValue(Communicator& comm, const T& value,
                                                                                 std::string_view what) {
  TESSERA_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      AllGatherText(comm, std::string_view(reinterpret_cast<const char*>(&value), sizeof value), what));
  std::vector<T> values(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) std::memcpy(&values[i], texts[i].data(), sizeof(T));
  return values;
}

// Collective. OK on every rank when `local` is OK on every rank; otherwise the lowest failing rank's error with its
// whole text, the same on every rank and marked as agreed. It names that rank and `what`, unless all ranks say the
// same. An error that is agreed already is returned as it is, without asking: it must come from this communicator.
Status AgreeOnStatus(Communicator& comm, const Status& local, std::string_view what);

// Collective. FailedPrecondition on every rank, marked as agreed, unless all digests are equal; it names the ranks that
// differ from the majority.
Status AgreeOnHash(Communicator& comm, uint64_t digest, std::string_view what);

// Whether every rank is known to hold this same error, so that one of them prints it and all of them leave quietly.
bool IsAgreed(const Status& status);

}  // namespace tessera
