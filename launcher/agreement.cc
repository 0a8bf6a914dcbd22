#include "launcher/agreement.h"

#include <cstdint>
#include <numeric>

#include "absl/strings/cord.h"

namespace tessera::launcher {
namespace {

constexpr char kAgreedPayload[] = "tessera.launcher/agreed";

Status Gather(Communicator& comm, ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
              std::string_view what) {
  std::vector<int64_t> displacements(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), displacements.begin(), int64_t{0});
  TESSERA_ASSIGN_OR_RETURN(Request request, comm.AllGatherV(send, receive, counts, displacements));
  return Wait(comm, request, absl::StrCat("the others after ", std::string(what)));
}

}  // namespace

StatusOr<std::vector<std::string>> AllGatherText(Communicator& comm, std::string_view text, std::string_view what) {
  const auto length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(comm.size());
  const std::vector<int64_t> counts(comm.size(), sizeof(int64_t));
  TESSERA_RETURN_IF_ERROR(
      Gather(comm, std::as_bytes(std::span(&length, 1)), reinterpret_cast<std::byte*>(lengths.data()), counts, what));
  std::string all(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), '\0');
  TESSERA_RETURN_IF_ERROR(
      Gather(comm, std::as_bytes(std::span(text)), reinterpret_cast<std::byte*>(all.data()), lengths, what));
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
    bool everywhere = true;
    for (const std::string& other : *reports) everywhere = everywhere && other == text;
    Status status(static_cast<absl::StatusCode>(text[0]),
                  everywhere ? text.substr(1) : absl::StrCat("rank ", rank, ": ", text.substr(1)));
    status.SetPayload(kAgreedPayload, absl::Cord("1"));
    return status;
  }
  return absl::OkStatus();
}

bool IsAgreed(const Status& status) {
  return status.GetPayload(kAgreedPayload).has_value();
}

}  // namespace tessera::launcher
