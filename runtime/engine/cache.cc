#include "runtime/engine/cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/device/buffer.h"

namespace tessera {
namespace {

constexpr int64_t kCacheLine = 64;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Sequence {
  int64_t rows = 0;
  std::vector<int32_t> pages;
};

Status CheckOptions(const CacheOptions& options) {
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

}  // namespace

// The pool is [layers][pages][keys, values][kv heads][page rows][width]: a decode step walks one layer, so a layer's
// pages lie together, and within a page the rows of a head follow each other, so a kernel streams them.
struct PagedCache::State {
  CacheOptions options;
  HostBuffer pool;
  int64_t key_bytes = 0;    // of one row of one head
  int64_t value_bytes = 0;  // 0 for a latent cache: its value is inside the key
  int64_t value_offset = 0;
  int64_t page_stride = 0;
  int64_t layer_stride = 0;
  std::vector<int32_t> references;  // per page: sequences that have it
  std::vector<int32_t> free;        // a stack
  std::unordered_map<SequenceId, Sequence> sequences;
  SequenceId next = 1;  // never used again, so a stale id is always found out

  std::byte* Page(int layer, int32_t page) const { return pool.data() + layer * layer_stride + page * page_stride; }

  int32_t TakePage() {
    const int32_t page = free.back();
    free.pop_back();
    references[page] = 1;
    return page;
  }

  void DropPage(int32_t page) {
    if (--references[page] == 0) free.push_back(page);
  }

  // The first `rows` rows of every layer.
  void CopyPage(int32_t from, int32_t to, int64_t rows) {
    for (int layer = 0; layer < options.layers; ++layer) {
      const std::byte* source = Page(layer, from);
      std::byte* destination = Page(layer, to);
      for (int head = 0; head < options.shape.kv_heads; ++head) {
        const int64_t key = head * options.page_tokens * key_bytes;
        std::memcpy(destination + key, source + key, rows * key_bytes);
        if (value_bytes == 0) continue;
        const int64_t value = value_offset + head * options.page_tokens * value_bytes;
        std::memcpy(destination + value, source + value, rows * value_bytes);
      }
    }
  }

  Status OutOfPages(const char* doing, int64_t needed) const {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cache: %s needs %d pages and %d of %d are free", doing, needed, free.size(), options.pages));
  }

  StatusOr<Sequence*> Find(SequenceId id) {
    const auto it = sequences.find(id);
    if (it == sequences.end()) return absl::NotFoundError(absl::StrFormat("cache: there is no sequence %d", id));
    return &it->second;
  }

  // The address of a row within a head's rows, or null when there is no such row.
  std::byte* Row(int layer, SequenceId id, int64_t row, int head, int64_t offset, int64_t row_bytes) {
    const auto it = sequences.find(id);
    if (it == sequences.end() || row < 0 || row >= it->second.rows || layer < 0 || layer >= options.layers ||
        head < 0 || head >= options.shape.kv_heads) {
      return nullptr;
    }
    const int64_t in_page = row % options.page_tokens;
    return Page(layer, it->second.pages[row / options.page_tokens]) + offset +
           (head * options.page_tokens + in_page) * row_bytes;
  }
};

PagedCache::PagedCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
PagedCache::PagedCache(PagedCache&&) noexcept = default;
PagedCache& PagedCache::operator=(PagedCache&&) noexcept = default;
PagedCache::~PagedCache() = default;

StatusOr<PagedCache> PagedCache::Create(const CacheOptions& options) {
  TESSERA_RETURN_IF_ERROR(CheckOptions(options));
  auto state = std::make_unique<State>();
  state->options = options;
  const CacheRowShape& shape = options.shape;
  const auto element_bytes = static_cast<int64_t>(SizeInBytes(shape.dtype));
  state->key_bytes = shape.key_width * element_bytes;
  state->value_bytes = shape.latent ? 0 : shape.value_width * element_bytes;
  const int64_t head_rows = int64_t{shape.kv_heads} * options.page_tokens;
  state->value_offset = RoundUp(head_rows * state->key_bytes, kCacheLine);
  state->page_stride = state->value_offset + RoundUp(head_rows * state->value_bytes, kCacheLine);
  // The product may not fit 64 bits; no machine has an exbibyte.
  if (double(state->page_stride) * double(options.pages) * options.layers > 0x1p60) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cache: %d pages of %d layers and %d bytes each exceed 2^60 bytes", options.pages,
                        options.layers, state->page_stride));
  }
  state->layer_stride = state->page_stride * options.pages;
  TESSERA_ASSIGN_OR_RETURN(state->pool, HostBuffer::Allocate(state->layer_stride * options.layers, "the cache's pool"));
  state->references.resize(options.pages);
  state->free.resize(options.pages);
  for (int64_t i = 0; i < options.pages; ++i) state->free[i] = static_cast<int32_t>(options.pages - 1 - i);
  return PagedCache(std::move(state));
}

SequenceId PagedCache::Start() {
  state_->sequences.emplace(state_->next, Sequence{});
  return state_->next++;
}

Status PagedCache::Append(std::span<const CacheGrowth> growth) {
  State& s = *state_;
  const int64_t page_tokens = s.options.page_tokens;
  constexpr int64_t kMostRows = int64_t{1} << 40;
  // First only count: rows as they will be, and sharers of a page that is about to be copied for one of them.
  std::unordered_map<SequenceId, int64_t> rows;
  std::unordered_map<int32_t, int> copies;
  int64_t needed = 0;
  for (const CacheGrowth& grow : growth) {
    TESSERA_ASSIGN_OR_RETURN(Sequence * sequence, s.Find(grow.sequence));
    if (grow.rows < 0 || grow.rows > kMostRows) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "cache: appending %d rows to sequence %d; it must be from 0 to 2^40", grow.rows, grow.sequence));
    }
    if (grow.rows == 0) continue;
    const auto [it, first] = rows.try_emplace(grow.sequence, sequence->rows);
    const int64_t before = (it->second + page_tokens - 1) / page_tokens;
    if (first && it->second % page_tokens != 0) {
      const int32_t last = sequence->pages.back();
      if (s.references[last] - copies[last] > 1) {
        ++copies[last];
        ++needed;
      }
    }
    it->second += grow.rows;
    needed += (it->second + page_tokens - 1) / page_tokens - before;
  }
  if (needed > static_cast<int64_t>(s.free.size())) return s.OutOfPages("appending", needed);

  for (const CacheGrowth& grow : growth) {
    if (grow.rows == 0) continue;
    Sequence& sequence = s.sequences.at(grow.sequence);
    const int64_t partial = sequence.rows % page_tokens;
    if (partial != 0 && s.references[sequence.pages.back()] > 1) {
      const int32_t copy = s.TakePage();
      s.CopyPage(sequence.pages.back(), copy, partial);
      s.DropPage(sequence.pages.back());
      sequence.pages.back() = copy;
    }
    sequence.rows += grow.rows;
    while (static_cast<int64_t>(sequence.pages.size()) * page_tokens < sequence.rows) {
      sequence.pages.push_back(s.TakePage());
    }
  }
  return absl::OkStatus();
}

StatusOr<SequenceId> PagedCache::Fork(SequenceId parent, int64_t rows) {
  State& s = *state_;
  TESSERA_ASSIGN_OR_RETURN(const Sequence* source, s.Find(parent));
  if (rows < 0 || rows > source->rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache: forking %d rows of sequence %d; it has %d", rows, parent, source->rows));
  }
  const int64_t full = rows / s.options.page_tokens;
  const int64_t partial = rows % s.options.page_tokens;
  if (partial != 0 && s.free.empty()) return s.OutOfPages("forking", 1);
  Sequence child{rows, {source->pages.begin(), source->pages.begin() + full}};
  for (int32_t page : child.pages) ++s.references[page];
  if (partial != 0) {
    child.pages.push_back(s.TakePage());
    s.CopyPage(source->pages[full], child.pages.back(), partial);
  }
  const SequenceId id = Start();
  s.sequences.at(id) = std::move(child);
  return id;
}

Status PagedCache::Truncate(SequenceId id, int64_t rows) {
  State& s = *state_;
  TESSERA_ASSIGN_OR_RETURN(Sequence * sequence, s.Find(id));
  if (rows < 0 || rows > sequence->rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache: truncating sequence %d to %d rows; it has %d", id, rows, sequence->rows));
  }
  sequence->rows = rows;
  const int64_t keep = (rows + s.options.page_tokens - 1) / s.options.page_tokens;
  while (static_cast<int64_t>(sequence->pages.size()) > keep) {
    s.DropPage(sequence->pages.back());
    sequence->pages.pop_back();
  }
  return absl::OkStatus();
}

Status PagedCache::Release(SequenceId id) {
  TESSERA_RETURN_IF_ERROR(state_->Find(id).status());
  TESSERA_RETURN_IF_ERROR(Truncate(id, 0));
  state_->sequences.erase(id);
  return absl::OkStatus();
}

int64_t PagedCache::rows(SequenceId id) const {
  const auto it = state_->sequences.find(id);
  return it == state_->sequences.end() ? -1 : it->second.rows;
}

std::span<const int32_t> PagedCache::pages(SequenceId id) const {
  const auto it = state_->sequences.find(id);
  if (it == state_->sequences.end()) return {};
  return it->second.pages;
}

CacheLayer PagedCache::layer(int layer) const {
  const State& s = *state_;
  const CacheRowShape& shape = s.options.shape;
  CacheLayer view;
  if (layer < 0 || layer >= s.options.layers) return view;
  view.key = s.Page(layer, 0);
  view.value = shape.latent ? view.key : view.key + s.value_offset;
  view.dtype = shape.dtype;
  view.kv_heads = shape.kv_heads;
  view.qk_width = shape.key_width;
  view.v_width = shape.value_width;
  view.page_tokens = s.options.page_tokens;
  view.page_stride = s.page_stride;
  view.key_row_stride = s.key_bytes;
  view.key_head_stride = s.options.page_tokens * s.key_bytes;
  view.value_row_stride = shape.latent ? s.key_bytes : s.value_bytes;
  view.value_head_stride = s.options.page_tokens * view.value_row_stride;
  return view;
}

std::byte* PagedCache::Key(int layer, SequenceId id, int64_t row, int kv_head) {
  return state_->Row(layer, id, row, kv_head, 0, state_->key_bytes);
}

std::byte* PagedCache::Value(int layer, SequenceId id, int64_t row, int kv_head) {
  if (state_->options.shape.latent) return Key(layer, id, row, kv_head);
  return state_->Row(layer, id, row, kv_head, state_->value_offset, state_->value_bytes);
}

const CacheOptions& PagedCache::options() const {
  return state_->options;
}
int64_t PagedCache::free_pages() const {
  return static_cast<int64_t>(state_->free.size());
}
int64_t PagedCache::bytes() const {
  return state_->pool.bytes();
}
int64_t PagedCache::bytes_per_token_layer() const {
  return state_->options.shape.bytes();
}

}  // namespace tessera
