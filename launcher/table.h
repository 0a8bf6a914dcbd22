// Plain text tables and number formats.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera::launcher {

// Columns are as wide as their widest cell. A column of numbers is right-aligned, any other left-aligned.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() == 1; }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string FormatBytes(double bytes);      // "1.50 MiB"
std::string FormatSeconds(double seconds);  // "12.3 ms"
std::string FormatError(double error);      // "1.2e-03"

}  // namespace tessera::launcher
