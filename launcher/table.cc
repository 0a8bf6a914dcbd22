#include "launcher/table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace tessera::launcher {

namespace {

bool LooksNumeric(const std::string& cell) {
  return cell.empty() || cell == "-" || absl::ascii_isdigit(static_cast<unsigned char>(cell[0]));
}

}  // namespace

std::string Table::ToString() const {
  std::vector<size_t> widths;
  std::vector<bool> numeric;
  for (size_t row = 0; row < rows_.size(); ++row) {
    widths.resize(std::max(widths.size(), rows_[row].size()));
    numeric.resize(widths.size(), true);
    for (size_t i = 0; i < rows_[row].size(); ++i) {
      widths[i] = std::max(widths[i], rows_[row][i].size());
      if (row > 0 && !LooksNumeric(rows_[row][i])) numeric[i] = false;
    }
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      line += (i > 0 ? "  " : "") + (numeric[i] ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string FormatBytes(double bytes) {
  if (bytes < 1024) return absl::StrFormat("%.0f B", bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  for (bytes /= 1024; bytes >= 1024 && unit + 1 < std::size(units); bytes /= 1024) ++unit;
  return absl::StrFormat("%.2f %s", bytes, units[unit]);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.1f us", seconds * 1e6);
  if (seconds < 1) return absl::StrFormat("%.1f ms", seconds * 1e3);
  return absl::StrFormat("%.2f s", seconds);
}

std::string FormatError(double error) {
  return absl::StrFormat("%.1e", error);
}

}  // namespace tessera::launcher
