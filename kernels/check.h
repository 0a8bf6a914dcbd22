// Precondition checks shared by every AttentionKernel, and which heads of a call meet.
#pragma once

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "runtime/base/status.h"

namespace tessera {

// InvalidArgument naming the first precondition of AttentionKernel::Attend that `args` breaks, in this order: memory
// space, dtypes, widths, key/value agreement, query/output/LSE agreement, heads, tiles, ALiBi slopes, threads.
Status CheckAttendArgs(const AttendArgs& args);

// The same for AttentionKernel::AttendBackward; gradients are checked where the forward checks output and LSE.
Status CheckAttendBackwardArgs(const AttendBackwardArgs& args);

// The key/value head of the views that query head `head` of the call reads.
template <class Args>
int KeyHeadOf(const Args& args, int head) {
  return (args.first_query_head + head) / args.group - args.first_kv_head;
}

// Query heads of the call that read key head `kv_head` of the views.
template <class Args>
HeadRange QueryHeadsOf(const Args& args, int kv_head) {
  const int64_t begin = int64_t{args.first_kv_head + kv_head} * args.group - args.first_query_head;
  return {static_cast<int>(std::clamp<int64_t>(begin, 0, args.query.heads)),
          static_cast<int>(std::clamp<int64_t>(begin + args.group, 0, args.query.heads))};
}

}  // namespace tessera
