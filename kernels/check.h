// Precondition checks shared by every AttentionKernel.
#pragma once

#include "kernels/attention.h"
#include "runtime/base/status.h"

namespace tessera {

// InvalidArgument naming the first precondition of AttentionKernel::Attend that `args` breaks, in this order: memory
// space, dtypes, widths, key/value agreement, query/output/LSE agreement, heads, tiles, ALiBi slopes, threads.
Status CheckAttendArgs(const AttendArgs& args);

// The key/value head of the views that query head `head` of the call reads.
inline int KeyHeadOf(const AttendArgs& args, int head) {
  return (args.first_query_head + head) / args.group - args.first_kv_head;
}

}  // namespace tessera
