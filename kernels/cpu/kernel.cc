#include "kernels/cpu/kernel.h"

#include <hwy/aligned_allocator.h>
#include <hwy/targets.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <memory>
#include <string>
#include <utility>

#include "kernels/check.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/lanes.h"

namespace tessera::cpu {
namespace {

// Multi-head latent attention reads keys of width 576; nothing in the kernel depends on this limit but its scratch.
constexpr int kMaxWidth = 1024;

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// (row, head) pairs of a task: enough that packing a key block (about 2 cycles per element) is a few percent of using
// it, few enough that queries, outputs and sums stay in a 512 KiB L2 cache (1 MiB with bf16 dot products, where a block
// is used up in half the time). Fewer when threads would be left without work, which costs packing time but no thread's
// idling.
int64_t PairsPerTask(const AttendArgs& args, const std::vector<QueryGroup>& wave, const InstructionSet& set) {
  const int64_t scale = set.bfloat16_dot ? 2 : 1;
  const int64_t floats = scale * 64 * 1024;
  constexpr int64_t kTasksPerThread = 4;
  const int64_t fewest = RoundUp(8 * kRowBlock, set.tile_rows);
  int64_t pairs = 0;
  for (const QueryGroup& group : wave) pairs += group.queries.count * args.query.heads;
  const int64_t cached = std::clamp<int64_t>(floats / (args.query.width + args.value.width), 192, scale * 768);
  const int64_t shared = std::max(fewest, pairs / (kTasksPerThread * args.threads));
  return std::min(cached, shared) / set.tile_rows * set.tile_rows;
}

// Rows are taken from the last to the first: under a causal mask the longest tasks then start first.
void AppendTasks(const AttendArgs& args, const QueryGroup& group, int kv_head, int64_t pairs_per_task,
                 std::vector<Task>* tasks) {
  const HeadRange heads = QueryHeadsOf(args, kv_head);
  if (heads.empty()) return;
  const int64_t step = std::max<int64_t>(1, pairs_per_task / heads.size());
  for (int64_t end = group.queries.count; end > 0; end -= step) {
    tasks->push_back({&group, {std::max<int64_t>(0, end - step), end}, heads, kv_head});
  }
}

size_t ArenaFloats(const AttendArgs& args, std::span<const Task> tasks, int tile_rows) {
  int64_t pairs = 0;
  for (const Task& task : tasks) pairs = std::max(pairs, task.rows.size() * task.heads.size());
  return ArenaLayout((pairs + tile_rows - 1) / tile_rows, tile_rows, args.query.width, args.value.width).total;
}

class CpuKernel final : public AttentionKernel {
 public:
  CpuKernel(const InstructionSet& set, std::string name) : set_(set), name_(std::move(name)) {}
  std::string_view name() const override { return name_; }

  std::string WhyNot(const AttentionTraits& traits) const override {
    if ((hwy::SupportedTargets() & set_.highway_target) == 0) {
      return absl::StrCat("this processor has no ", hwy::TargetName(set_.highway_target));
    }
    if (set_.amx && !HasAmx()) return "this processor or system has no AMX for bf16";
    if (set_.bfloat16_dot) {
      if (!HasBFloat16Dot()) return "this processor has no AVX-512 BF16";
      if (traits.dtype != DType::kBFloat16) {
        return absl::StrCat("it multiplies bf16, not ", std::string(Name(traits.dtype)));
      }
    }
    if (traits.dtype == DType::kFloat64) return "it computes in fp32, which fp64 tensors would lose digits to";
    for (int width : {traits.qk_width, traits.v_width}) {
      if (width < 1 || width > kMaxWidth) return absl::StrCat("head widths must lie in [1, ", kMaxWidth, "]");
    }
    return "";
  }

  Status Attend(const AttendArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckAttendArgs(args));
    if (const std::string reason = WhyNot({args.query.dtype, args.query.width, args.value.width}); !reason.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(name_, ": ", reason));
    }
    for (const std::vector<QueryGroup>& wave : Waves(args.tiles)) {
      const int64_t pairs_per_task = PairsPerTask(args, wave, set_);
      std::vector<Task> tasks;
      for (const QueryGroup& group : wave) {
        for (int kv_head = 0; kv_head < args.key.heads; ++kv_head) {
          AppendTasks(args, group, kv_head, pairs_per_task, &tasks);
        }
      }
      TESSERA_RETURN_IF_ERROR(Run(args, tasks));
      if (IsSet(args.cancelled)) return absl::CancelledError(absl::StrCat(name_, ": cancelled"));
    }
    return absl::OkStatus();
  }

  Status AttendBackward(const AttendBackwardArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckAttendBackwardArgs(args));
    if (const std::string reason = WhyNot({args.query.dtype, args.query.width, args.value.width}); !reason.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(name_, ": ", reason));
    }
    return RunBackward(args, set_.backward, name_);
  }

 private:
  // A row's arithmetic does not depend on its task or thread, so neither does the result.
  Status Run(const AttendArgs& args, std::span<const Task> tasks) const {
    const int threads = static_cast<int>(std::min<size_t>(args.threads, tasks.size()));
    if (threads == 0) return absl::OkStatus();
    const size_t floats = ArenaFloats(args, tasks, set_.tile_rows);
    std::atomic<bool> failed = false;
#pragma omp parallel num_threads(threads)
    {
      const auto arena = hwy::AllocateAligned<float>(floats);
      RowMask mask;
      if (arena == nullptr) failed = true;
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < tasks.size(); ++i) {
        if (!failed && !IsSet(args.cancelled)) set_.attend(args, tasks[i], mask, arena.get());
      }
    }
    if (failed) return absl::ResourceExhaustedError(absl::StrCat(name_, ": no memory for ", floats * 4, " bytes"));
    return absl::OkStatus();
  }

  InstructionSet set_;
  std::string name_;
};

std::string NameOf(const InstructionSet& set) {
  std::string name = "cpu-";
  for (const char* c = hwy::TargetName(set.highway_target); *c != '\0'; ++c) {
    name += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  return name;
}

}  // namespace

ArenaLayout::ArenaLayout(int64_t blocks, int tile_rows, int qk_width, int v_width)
    : v_stride(static_cast<int>(RoundUpToLanes(v_width))) {
  const size_t rows = static_cast<size_t>(blocks) * tile_rows;
  const size_t depth = RoundUp(qk_width, kWholeTiles);
  total = 0;
  const auto take = [this](size_t floats) {
    const size_t offset = total;
    total += RoundUpToLanes(floats);
    return offset;
  };
  query = take(rows * depth);
  output = take(rows * v_stride);
  sum = take(rows * kMaxLanes);
  max = take(rows);
  seen = take(rows);
  key = take(size_t{kKeyBlock} * depth);
  value = take(size_t{kKeyBlock} * v_stride);
  score = take(3 * static_cast<size_t>(tile_rows) * kKeyBlock);
  staging = take(4 * RoundUpToLanes(qk_width));
}

std::unique_ptr<const AttentionKernel> MakeKernel(const InstructionSet& set, std::string name) {
  return std::make_unique<CpuKernel>(set, std::move(name));
}

std::vector<const AttentionKernel*> Kernels() {
  static const std::vector<std::unique_ptr<const CpuKernel>> kernels = [] {
    std::vector<std::unique_ptr<const CpuKernel>> all;
    const InstructionSet& amx = AmxInstructionSet();
    if (amx.attend != nullptr) all.push_back(std::make_unique<CpuKernel>(amx, "cpu-amx"));
    const InstructionSet& bfloat16 = BFloat16InstructionSet();
    if (bfloat16.attend != nullptr) all.push_back(std::make_unique<CpuKernel>(bfloat16, "cpu-avx512-bf16"));
    for (const InstructionSet& set : InstructionSets()) {
      if (set.attend != nullptr) all.push_back(std::make_unique<CpuKernel>(set, NameOf(set)));
    }
    return all;
  }();
  std::vector<const AttentionKernel*> pointers;
  for (const auto& kernel : kernels) pointers.push_back(kernel.get());
  return pointers;
}

}  // namespace tessera::cpu
