#include "kernels/cpu/decode_reader.h"

#include <algorithm>
#include <span>

#include "kernels/decode_check.h"

namespace tessera::cpu {
namespace {

// Fills a block with the addresses of cached rows, page by page.
void Read(const CacheLayer& cache, std::span<const int32_t> pages, int kv_head, Range keys, DecodeBlock* block) {
  block->count = 0;
  while (!keys.empty()) {
    const int64_t in_page = cache.page_tokens - keys.begin % cache.page_tokens;
    const auto rows = static_cast<int>(std::min(in_page, keys.size()));
    const std::byte* key = KeyAt(cache, pages, keys.begin, kv_head);
    const std::byte* value = ValueAt(cache, pages, keys.begin, kv_head);
    for (int i = 0; i < rows; ++i, key += cache.key_row_stride, value += cache.value_row_stride) {
      block->key[block->count + i] = key;
      block->value[block->count + i] = value;
    }
    block->count += rows;
    keys.begin += rows;
  }
}

}  // namespace

DecodeReader::DecodeReader(const DecodeArgs& args, const DecodeWave& wave, size_t begin, size_t end, int block_keys)
    : cache_(args.cache), wave_(wave), begin_(begin), block_keys_(block_keys) {
  segments_.reserve(end - begin);
  for (size_t task = begin; task < end; ++task) {
    segments_.push_back(Segments(wave.heads(wave.tasks[task]).front(), wave.tasks[task].keys));
  }
  Enter(0, 0);
}

void DecodeReader::Enter(size_t task, size_t segment) {
  while (task < segments_.size() && segment == segments_[task].size()) {
    ++task;
    segment = 0;
  }
  task_ = task;
  segment_ = segment;
  if (task < segments_.size()) keys_ = segments_[task][segment].keys;
}

bool DecodeReader::Next(DecodePlace* place) {
  place->block.count = 0;
  if (task_ == segments_.size()) return false;
  place->task = begin_ + task_;
  place->segment = &segments_[task_][segment_];
  const std::span<const DecodePairs> heads = wave_.heads(wave_.tasks[place->task]);
  const Range now{keys_.begin, std::min(keys_.end, keys_.begin + block_keys_)};
  place->block.heads = static_cast<int>(heads.size());
  place->block.key_head_stride = cache_.key_head_stride;
  place->block.value_head_stride = cache_.value_head_stride;
  Read(cache_, heads.front().sequence->pages, heads.front().kv_head, now, &place->block);
  keys_.begin = now.end;
  if (keys_.empty()) Enter(task_, segment_ + 1);
  return true;
}

}  // namespace tessera::cpu
