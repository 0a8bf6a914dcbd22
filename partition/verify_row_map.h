// A total map from the rows [0, n) of a slot to values, stored as runs of rows. Private to Verify().
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/base/geometry.h"

namespace tessera::verify {

// Value must provide `void Advance(int64_t rows)`: turns the value of a run into that of the run's tail after `rows`
// rows.
template <typename Value>
class RowMap {
 public:
  struct Run {
    Range rows;
    Value value;
  };

  explicit RowMap(int64_t rows, Value value = {}) {
    if (rows > 0) runs_.push_back({{0, rows}, std::move(value)});
  }

  const std::vector<Run>& runs() const { return runs_; }

  // Replaces the values of `rows` by one run.
  void Assign(Range rows, Value value) {
    if (rows.empty()) return;
    const auto [first, last] = Isolate(rows);
    runs_[first] = {rows, std::move(value)};
    runs_.erase(runs_.begin() + first + 1, runs_.begin() + last);
  }

  // Calls visit(run) for every run within `rows`, cut at its ends, with the right to change the value. Stops when visit
  // returns false; returns whether it never did.
  template <typename Visit>
  bool Update(Range rows, Visit visit) {
    if (rows.empty()) return true;
    const auto [first, last] = Isolate(rows);
    for (std::ptrdiff_t i = first; i < last; ++i) {
      if (!visit(runs_[i])) return false;
    }
    return true;
  }

  // As Update, but reads only: the runs are copies clipped to `rows`.
  template <typename Visit>
  bool ForEach(Range rows, Visit visit) const {
    if (rows.empty()) return true;
    for (size_t i = Find(rows.begin); i < runs_.size() && runs_[i].rows.begin < rows.end; ++i) {
      Run run = runs_[i];
      if (run.rows.begin < rows.begin) {
        run.value.Advance(rows.begin - run.rows.begin);
        run.rows.begin = rows.begin;
      }
      run.rows.end = std::min(run.rows.end, rows.end);
      if (!visit(run)) return false;
    }
    return true;
  }

 private:
  size_t Find(int64_t row) const {
    const auto after = std::upper_bound(runs_.begin(), runs_.end(), row,
                                        [](int64_t value, const Run& run) { return value < run.rows.begin; });
    return static_cast<size_t>(after - runs_.begin()) - 1;
  }
  // Makes a run start at `row`; returns its index.
  size_t SplitAt(int64_t row) {
    if (runs_.empty() || row >= runs_.back().rows.end) return runs_.size();
    const size_t i = Find(row);
    if (runs_[i].rows.begin == row) return i;
    Run tail = runs_[i];
    tail.value.Advance(row - tail.rows.begin);
    tail.rows.begin = row;
    runs_[i].rows.end = row;
    runs_.insert(runs_.begin() + static_cast<std::ptrdiff_t>(i) + 1, std::move(tail));
    return i + 1;
  }
  std::pair<std::ptrdiff_t, std::ptrdiff_t> Isolate(Range rows) {
    const size_t first = SplitAt(rows.begin);
    return {first, SplitAt(rows.end)};
  }

  std::vector<Run> runs_;
};

}  // namespace tessera::verify
