#include "launcher/record.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "launcher/build_info.h"
#include "launcher/host.h"
#include "partition/print.h"

namespace tessera::launcher {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const Errors& errors) {
  // JSON has no infinity; a result that is not finite is null and not ok.
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  return {{"max_absolute", number(errors.max_absolute)},
          {"relative", number(errors.relative)},
          {"lse_relative", number(errors.lse_relative)}};
}

}  // namespace

std::string ToJsonLine(const BenchSample& sample, const PlanSpec& spec) {
  const RunReport& report = sample.report;
  const Json record = {
      {"schema", "tessera-bench-1"},
      {"revision", kRevision},
      {"machine", {{"host", HostName()}, {"cpu", CpuModel()}, {"cores", UsableCores()}}},
      {"problem", spec.problem.ToString()},
      {"strategy", sample.strategy},
      {"plan", ToString(spec)},
      {"pass", spec.pass == Pass::kForward ? "forward" : "backward"},
      {"ranks", sample.ranks},
      {"threads_per_rank", sample.threads},
      {"implementation", report.kernel},
      {"seconds", report.seconds},
      {"device", report.device.empty() ? Json("cpu") : Json(report.device)},
      {"compute_seconds", report.compute_seconds ? Json(*report.compute_seconds) : Json()},
      {"overlap", report.overlap ? Json(*report.overlap) : Json()},
      {"flops", report.flops},
      {"bytes_predicted", report.bytes_predicted},
      {"bytes_counted", report.bytes_counted},
      {"slot_bytes", report.slot_bytes},
      {"peak_bytes", report.peak_bytes < 0 ? Json() : Json(report.peak_bytes)},
      {"error", sample.verdict.checked ? ToJson(sample.verdict.errors) : Json()},
      {"plain_error", sample.verdict.checked ? ToJson(sample.plain) : Json()},
      {"check", Describe(sample.verdict)},
      {"ok", sample.verdict.ok()},
  };
  return record.dump();
}

}  // namespace tessera::launcher
