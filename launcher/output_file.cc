#include "launcher/output_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "collectives/agreement.h"
#include "launcher/temporary_file.h"
#include "runtime/base/safetensors.h"

namespace tessera::launcher {
namespace {

bool SameFile(const std::string& a, const std::string& b) {
  struct stat of_a = {}, of_b = {};
  if (stat(a.c_str(), &of_a) == 0 && stat(b.c_str(), &of_b) == 0) {
    return of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
  }
  // What does not exist yet can only be the same by name.
  std::error_code ignored;
  return std::filesystem::weakly_canonical(a, ignored) == std::filesystem::weakly_canonical(b, ignored);
}

}  // namespace

Status CheckDistinct(const std::vector<NamedFile>& read, const std::vector<NamedFile>& written) {
  for (size_t i = 0; i < written.size(); ++i) {
    const NamedFile& file = written[i];
    std::vector<NamedFile> others = read;
    others.insert(others.end(), written.begin(), written.begin() + static_cast<std::ptrdiff_t>(i));
    for (const NamedFile& other : others) {
      if (file.path.empty() || other.path.empty() || !SameFile(file.path, other.path)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(file.flag, " ", file.path, " is the same file as ", other.flag, " ", other.path,
                       "; allowed: different files, because a run replaces what it writes"));
    }
  }
  return absl::OkStatus();
}

Status WriteAside(const std::string& path, const std::string& text) {
  const std::string name = absl::StrCat(path, ".tmp-", getpid());
  TemporaryFile temporary(name);
  std::ofstream file(name);
  file << text << std::flush;
  if (!file.good() || std::rename(name.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
  }
  temporary.Keep();
  return absl::OkStatus();
}

Status WriteResult(Communicator& comm, const PlanSpec& spec, const RunResult& result, const std::string& path) {
  const Problem& problem = spec.problem;
  const std::vector<SafetensorsEntry> entries = {
      {"out", problem.dtype, {problem.query_tokens, problem.query_heads, problem.v_width}},
      {"lse", AccumulatorType(problem.dtype), {problem.query_tokens, problem.query_heads}}};
  const bool root = comm.rank() == 0;
  std::random_device random;
  uint64_t token = uint64_t{random()} << 32 | random();
  TESSERA_ASSIGN_OR_RETURN(const std::vector<uint64_t> tokens, AllGatherValue(comm, token, "naming the output"));
  token = tokens[0];

  TemporaryFile temporary(absl::StrFormat("%s.tmp-%016x", path, token));  // the name that the writer gives it
  std::optional<StatusOr<SafetensorsWriter>> writer;
  if (root) writer.emplace(SafetensorsWriter::Create(path, entries, token));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, root ? writer->status() : absl::OkStatus(), "creating the output"));
  if (!root) writer.emplace(SafetensorsWriter::Join(path, entries, token));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, writer->status(), "opening the output"));

  const auto segments = spec.query_layout.segments(comm.rank());
  Status status = (*writer)->WriteRows("out", segments, result.output.view());
  if (status.ok()) status = (*writer)->WriteRows("lse", segments, result.lse.view());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "writing the output"));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, root ? (*writer)->Commit() : absl::OkStatus(), "renaming the output"));
  temporary.Keep();
  return absl::OkStatus();
}

Status WriteTrace(Communicator& comm, const Trace& trace, const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> documents,
                           AllGatherText(comm, ToChromeTrace({trace}), "executing the plan"));
  Status status;
  if (comm.rank() == 0) {
    nlohmann::json merged = {{"traceEvents", nlohmann::json::array()}};
    for (const std::string& text : documents) {
      const nlohmann::json document = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (!document.is_object() || !document.contains("traceEvents")) {
        status = absl::InternalError("a rank's trace is not a Chrome trace document");
        break;
      }
      for (const nlohmann::json& event : document["traceEvents"]) merged["traceEvents"].push_back(event);
    }
    if (status.ok()) status = WriteAside(path, merged.dump());
  }
  return AgreeOnStatus(comm, status, "writing the trace");
}

}  // namespace tessera::launcher
