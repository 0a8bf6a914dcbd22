#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "absl/strings/str_join.h"
#include "runtime/engine/attention.h"

namespace tessera {
namespace {

// Every rank's `mine`, by rank.
template <typename T>
StatusOr<std::vector<T>> GatherValue(Communicator& comm, const T& mine, std::string_view what) {
  std::vector<T> all(comm.size());
  const std::vector<int64_t> counts(comm.size(), sizeof mine);
  std::vector<int64_t> displacements(comm.size());
  for (int r = 0; r < comm.size(); ++r) displacements[r] = r * int64_t{sizeof mine};
  TESSERA_ASSIGN_OR_RETURN(Request request,
                           comm.AllGatherV(std::as_bytes(std::span(&mine, 1)), reinterpret_cast<std::byte*>(all.data()),
                                           counts, displacements));
  TESSERA_RETURN_IF_ERROR(Wait(comm, request, what));
  return all;
}

}  // namespace

Status AgreeOnHash(Communicator& comm, uint64_t digest, std::string_view what) {
  const int ranks = comm.size();
  TESSERA_ASSIGN_OR_RETURN(const std::vector<uint64_t> digests,
                           GatherValue(comm, digest, "agreement on the " + std::string(what)));
  // The largest group is taken for right; between equal groups, the one of the lowest rank.
  std::map<uint64_t, int> votes;
  for (uint64_t d : digests) ++votes[d];
  if (votes.size() == 1) return absl::OkStatus();
  uint64_t majority = digests[0];
  for (uint64_t d : digests) {
    if (votes[d] > votes[majority]) majority = d;
  }
  std::vector<int> strangers;
  for (int r = 0; r < ranks; ++r) {
    if (digests[r] != majority) strangers.push_back(r);
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("ranks disagree on the %s: rank%s %s differ%s from the other %d; every rank must be started with "
                      "the same arguments and "
                      "the same release",
                      std::string(what), strangers.size() == 1 ? "" : "s", absl::StrJoin(strangers, ", "),
                      strangers.size() == 1 ? "s" : "", ranks - static_cast<int>(strangers.size())));
}

Status AgreeOnReadiness(Communicator& comm, const Status& status, std::string_view what) {
  struct Notice {
    int32_t code = 0;
    char text[252] = {};
  };
  Notice mine;
  mine.code = static_cast<int32_t>(status.code());
  const std::string text(status.message());
  std::memcpy(mine.text, text.data(), std::min(text.size(), sizeof mine.text - 1));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Notice> notices, GatherValue(comm, mine, what));
  for (int r = 0; r < comm.size(); ++r) {
    if (notices[r].code == 0) continue;
    return Status(static_cast<absl::StatusCode>(notices[r].code),
                  absl::StrFormat("rank %d, %s: %s", r, std::string(what), notices[r].text));
  }
  return absl::OkStatus();
}

}  // namespace tessera
