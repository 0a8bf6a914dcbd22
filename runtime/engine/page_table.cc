#include "runtime/engine/page_table.h"

#include <limits>
#include <utility>

namespace tessera {

Status Validate(const CacheOptions& options) {
  const auto reject = [](const char* field, int64_t value, const std::string& allowed) {
    return absl::InvalidArgumentError(absl::StrCat("cache: ", field, " is ", value, "; it must be ", allowed));
  };
  // A rank that serves no head keeps count of rows of no width.
  CacheRowShape shape = options.shape;
  if (shape.kv_heads == 0) shape.kv_heads = 1;
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  constexpr int kMost = 1 << 16;
  constexpr int64_t kMostPages = std::numeric_limits<int32_t>::max();
  if (options.layers < 1 || options.layers > kMost) return reject("layers", options.layers, "from 1 to 65536");
  if (options.page_tokens < 1 || options.page_tokens > kMost) {
    return reject("page_tokens", options.page_tokens, "from 1 to 65536");
  }
  if (options.pages < 0 || options.pages > kMostPages) {
    return reject("pages", options.pages, absl::StrCat("from 0 to ", kMostPages));
  }
  return absl::OkStatus();
}

PageTable::PageTable(const CacheOptions& options)
    : options_(options), references_(options.pages), free_(options.pages) {
  for (int64_t i = 0; i < options.pages; ++i) free_[i] = static_cast<int32_t>(options.pages - 1 - i);
}

int32_t PageTable::TakePage() {
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PageTable::DropPage(int32_t page) {
  if (--references_[page] == 0) free_.push_back(page);
}

Status PageTable::OutOfPages(const char* doing, int64_t needed) const {
  return absl::ResourceExhaustedError(
      absl::StrFormat("cache: %s needs %d pages and %d of %d are free", doing, needed, free_.size(), options_.pages));
}

StatusOr<PageTable::Sequence*> PageTable::Find(SequenceId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return absl::NotFoundError(absl::StrFormat("cache: there is no sequence %d", id));
  return &it->second;
}

SequenceId PageTable::Start() {
  sequences_.emplace(next_, Sequence{});
  return next_++;
}

StatusOr<std::vector<PageCopy>> PageTable::Append(std::span<const CacheGrowth> growth) {
  const int64_t page_tokens = options_.page_tokens;
  constexpr int64_t kMostRows = int64_t{1} << 40;
  // First only count: rows as they will be, and sharers of a page that is about to be copied for one of them.
  std::unordered_map<SequenceId, int64_t> rows;
  std::unordered_map<int32_t, int> sharers_gone;
  int64_t needed = 0;
  for (const CacheGrowth& grow : growth) {
    TESSERA_ASSIGN_OR_RETURN(Sequence * sequence, Find(grow.sequence));
    if (grow.rows < 0 || grow.rows > kMostRows) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "cache: appending %d rows to sequence %d; it must be from 0 to 2^40", grow.rows, grow.sequence));
    }
    if (grow.rows == 0) continue;
    const auto [it, first] = rows.try_emplace(grow.sequence, sequence->rows);
    const int64_t before = PagesFor(it->second);
    if (first && it->second % page_tokens != 0) {
      const int32_t last = sequence->pages.back();
      if (references_[last] - sharers_gone[last] > 1) {
        ++sharers_gone[last];
        ++needed;
      }
    }
    it->second += grow.rows;
    needed += PagesFor(it->second) - before;
  }
  if (needed > free_pages()) return OutOfPages("appending", needed);

  std::vector<PageCopy> copies;
  for (const CacheGrowth& grow : growth) {
    if (grow.rows == 0) continue;
    Sequence& sequence = sequences_.at(grow.sequence);
    const int64_t partial = sequence.rows % page_tokens;
    // The last of the sharers keeps the page, so it is nobody's new page while its rows are still to be copied.
    if (partial != 0 && references_[sequence.pages.back()] > 1) {
      const int32_t copy = TakePage();
      copies.push_back({sequence.pages.back(), copy, partial});
      DropPage(sequence.pages.back());
      sequence.pages.back() = copy;
    }
    sequence.rows += grow.rows;
    while (static_cast<int64_t>(sequence.pages.size()) * page_tokens < sequence.rows) {
      sequence.pages.push_back(TakePage());
    }
  }
  return copies;
}

StatusOr<PageTable::Forked> PageTable::Fork(SequenceId parent, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(const Sequence* source, Find(parent));
  if (rows < 0 || rows > source->rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache: forking %d rows of sequence %d; it has %d", rows, parent, source->rows));
  }
  const int64_t full = rows / options_.page_tokens;
  const int64_t partial = rows % options_.page_tokens;
  if (partial != 0 && free_.empty()) return OutOfPages("forking", 1);
  Sequence child{rows, {source->pages.begin(), source->pages.begin() + full}};
  for (int32_t page : child.pages) ++references_[page];
  Forked forked;
  if (partial != 0) {
    child.pages.push_back(TakePage());
    forked.copy = PageCopy{source->pages[full], child.pages.back(), partial};
  }
  forked.child = Start();
  sequences_.at(forked.child) = std::move(child);
  return forked;
}

Status PageTable::Truncate(SequenceId id, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(Sequence * sequence, Find(id));
  if (rows < 0 || rows > sequence->rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache: truncating sequence %d to %d rows; it has %d", id, rows, sequence->rows));
  }
  sequence->rows = rows;
  while (static_cast<int64_t>(sequence->pages.size()) > PagesFor(rows)) {
    DropPage(sequence->pages.back());
    sequence->pages.pop_back();
  }
  return absl::OkStatus();
}

Status PageTable::Release(SequenceId id) {
  TESSERA_RETURN_IF_ERROR(Truncate(id, 0));
  sequences_.erase(id);
  return absl::OkStatus();
}

int64_t PageTable::rows(SequenceId id) const {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? -1 : it->second.rows;
}

std::span<const int32_t> PageTable::pages(SequenceId id) const {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return {};
  return it->second.pages;
}

std::optional<PageTable::Place> PageTable::PlaceOf(SequenceId id, int64_t row) const {
  const auto it = sequences_.find(id);
  if (it == sequences_.end() || row < 0 || row >= it->second.rows) return std::nullopt;
  return Place{it->second.pages[row / options_.page_tokens], row % options_.page_tokens};
}

}  // namespace tessera
