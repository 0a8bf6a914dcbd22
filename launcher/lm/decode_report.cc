#include "launcher/lm/decode_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/build_info.h"
#include "launcher/host.h"

namespace tessera::launcher {
namespace {

std::string Check(const DecodeRow& row) {
  if (!row.accurate) return "WRONG";
  if (!row.bytes_match()) return "BYTES DIFFER";
  if (!row.error) return "not verified";
  return row.approximate ? "approximate" : "ok";
}

}  // namespace

bool Accurate(const DecodeRow& row, DType dtype, std::optional<double> plain_error) {
  if (!row.error) return true;
  if (!std::isfinite(*row.error)) return false;
  if (row.approximate) return true;
  // Seen: 1e-6 in fp32, 1e-2 where every projection of a small layer is rounded to bf16.
  const double most = dtype == DType::kFloat32 ? 1e-4 : 0.05;
  return *row.error <= most && (!plain_error || *row.error <= 2 * *plain_error + 1e-7);
}

void DecodeReport::Add(const DecodeRow& row) {
  if (row.method == "head" && row.ranks > 1) head_seconds_ = row.slowest.seconds;
  const DecodeCost& cost = row.slowest;
  const bool mla = load_.shape.is_mla(), split = cost.split_known;
  table_.Add({row.method, absl::StrCat(row.ranks), FormatSeconds(cost.seconds),
              absl::StrFormat("%.1f", static_cast<double>(load_.rows()) / cost.seconds),
              head_seconds_ > 0 && row.ranks > 1 ? absl::StrFormat("%.2fx", head_seconds_ / cost.seconds) : "-",
              split ? FormatSeconds(cost.attention_seconds) : "-",
              mla && split ? FormatSeconds(cost.projection_seconds) : "-",
              mla && split ? FormatSeconds(cost.slice_seconds + cost.all_reduce_seconds) : "-",
              absl::StrCat(*std::ranges::max_element(row.cache_bytes_per_token)),
              FormatBytes(static_cast<double>(*std::ranges::max_element(row.cache_bytes))),
              absl::StrCat(row.bytes_received), row.bytes_predicted ? absl::StrCat(*row.bytes_predicted) : "-",
              split ? absl::StrFormat("%.1f", row.read_bytes_per_second * 1e-9) : "-",
              split ? absl::StrFormat("%.3f", row.attention_flops / cost.attention_seconds * 1e-12) : "-",
              row.error ? FormatError(*row.error) : "-", Check(row)});
  records_ += ToJsonLine(row) + "\n";
}

void DecodeReport::AddRefusal(const std::string& method, const Status& why) {
  table_.Add({method, "refused: " + std::string(why.message())});
}

void DecodeReport::Print() const {
  if (!table_.empty()) std::fputs(table_.ToString().c_str(), stdout);
  std::fflush(stdout);
}

std::string DecodeReport::ToJsonLine(const DecodeRow& row) const {
  using Json = nlohmann::ordered_json;
  const auto part = [&](double seconds) { return row.slowest.split_known ? Json(seconds) : Json(); };
  const Json record = {{"schema", "tessera-decode-1"},
                       {"revision", kRevision},
                       {"machine", {{"host", HostName()}, {"cpu", CpuModel()}, {"cores", UsableCores()}}},
                       {"device", device_.empty() ? "cpu" : device_},
                       {"model", load_.shape.name},
                       {"context", load_.context_tokens},
                       {"batch", load_.batch},
                       {"query_tokens", load_.query_tokens},
                       {"dtype", std::string(Name(load_.dtype))},
                       {"method", row.method},
                       {"ranks", row.ranks},
                       {"threads_per_rank", load_.threads},
                       {"implementation", row.kernel},
                       {"seconds", row.slowest.seconds},
                       {"attention_seconds", part(row.slowest.attention_seconds)},
                       {"projection_seconds", part(row.slowest.projection_seconds)},
                       {"slice_seconds", part(row.slowest.slice_seconds)},
                       {"all_reduce_seconds", part(row.slowest.all_reduce_seconds)},
                       {"attention_flops", row.attention_flops},
                       {"cache_bytes_per_token_layer", row.cache_bytes_per_token},
                       {"cache_bytes", row.cache_bytes},
                       {"bytes_received", row.bytes_received},
                       {"bytes_predicted", row.bytes_predicted ? Json(*row.bytes_predicted) : Json()},
                       // JSON has no infinity; a result that is not finite is null and not ok.
                       {"error", row.error && std::isfinite(*row.error) ? Json(*row.error) : Json()},
                       {"approximate", row.approximate},
                       {"ok", row.ok()}};
  return record.dump();
}

}  // namespace tessera::launcher
