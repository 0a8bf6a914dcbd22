#include "collectives/agreement.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/cord.h"
#include "absl/strings/str_join.h"

namespace tessera {
namespace {

constexpr char kAgreedPayload[] = "tessera/agreed";

Status Gather(Communicator& comm, ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
              std::string_view what) {
  std::vector<int64_t> displacements(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), displacements.begin(), int64_t{0});
  TESSERA_ASSIGN_OR_RETURN(Request request, comm.AllGatherV(send, receive, counts, displacements));
  return Wait(comm, request, absl::StrCat("the others after ", std::string(what)));
}

Status Agreed(absl::StatusCode code, std::string_view text) {
  Status status(code, std::string(text));
  status.SetPayload(kAgreedPayload, absl::Cord("1"));
  return status;
}

}  // namespace

StatusOr<std::vector<std::string>> AllGatherText(Communicator& comm, std::string_view text, std::string_view what) {
  const auto length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(comm.size());
  const std::vector<int64_t> counts(comm.size(), sizeof(int64_t));
  TESSERA_RETURN_IF_ERROR(
      Gather(comm, std::as_bytes(std::span(&length, 1)), reinterpret_cast<std::byte*>(lengths.data()), counts, what));
  std::string all(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), '\0');
  // Most agreements have nothing to say; one exchange is enough for them.
  if (!all.empty()) {
    TESSERA_RETURN_IF_ERROR(
        Gather(comm, std::as_bytes(std::span(text)), reinterpret_cast<std::byte*>(all.data()), lengths, what));
  }
  std::vector<std::string> texts;
  size_t begin = 0;
  for (int64_t count : lengths) {
    texts.push_back(all.substr(begin, count));
    begin += count;
  }
  return texts;
}

Status AgreeOnStatus(Communicator& comm, const Status& local, std::string_view what) {
  // An agreed error is already everywhere; asking again would only find the peers gone.
  if (IsAgreed(local)) return local;
  std::string report;
  if (!local.ok()) {
    report = std::string(1, static_cast<char>(local.code()));
    report += std::string(local.message());
  }
  const StatusOr<std::vector<std::string>> reports = AllGatherText(comm, report, what);
  if (!reports.ok()) return local.ok() ? reports.status() : local;
  for (size_t rank = 0; rank < reports->size(); ++rank) {
    const std::string& text = (*reports)[rank];
    if (text.empty()) continue;
    const bool everywhere = std::ranges::count(*reports, text) == comm.size();
    const std::string_view message = std::string_view(text).substr(1);
    return Agreed(static_cast<absl::StatusCode>(text[0]),
                  everywhere ? std::string(message)
                             : absl::StrFormat("rank %d, %s: %s", rank, std::string(what), std::string(message)));
  }
  return absl::OkStatus();
}

Status AgreeOnHash(Communicator& comm, uint64_t digest, std::string_view what) {
  const int ranks = comm.size();
  std::vector<uint64_t> digests(ranks);
  const std::vector<int64_t> counts(ranks, sizeof digest);
  TESSERA_RETURN_IF_ERROR(Gather(comm, std::as_bytes(std::span(&digest, 1)),
                                 reinterpret_cast<std::byte*>(digests.data()), counts,
                                 "agreement on the " + std::string(what)));
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
  return Agreed(
      absl::StatusCode::kFailedPrecondition,
      absl::StrFormat("ranks disagree on the %s: rank%s %s differ%s from the other %d; every rank must be started with "
                      "the same arguments and "
                      "the same release",
                      std::string(what), strangers.size() == 1 ? "" : "s", absl::StrJoin(strangers, ", "),
                      strangers.size() == 1 ? "s" : "", ranks - static_cast<int>(strangers.size())));
}

bool IsAgreed(const Status& status) {
  return status.GetPayload(kAgreedPayload).has_value();
}

}  // namespace tessera
