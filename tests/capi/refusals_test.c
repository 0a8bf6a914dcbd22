/* Every bad input has a result code and a text that names the argument. */
#include <pthread.h>

#include "check.h"
#include "mailbox.h"
#include "training_step.h"

static tessera_tensor dense(float* data, int64_t rows, int64_t heads, int64_t width) {
  tessera_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.shape[0] = rows;
  tensor.shape[1] = heads;
  tensor.shape[2] = width;
  return tensor;
}

static void versions(void) {
  CHECK(tessera_api_version() == TESSERA_API_VERSION && strcmp(tessera_version(), "") != 0);
  CHECK(strcmp(tessera_last_error(), "") == 0);
  CHECK_OK(tessera_check_version(TESSERA_API_VERSION));
  CHECK_REFUSED(tessera_check_version(TESSERA_API_VERSION + 1), TESSERA_FAILED_PRECONDITION,
                "header_version is 2; the loaded library, release ");
  CHECK_REFUSED(tessera_check_version(0), TESSERA_FAILED_PRECONDITION, "serves 1: tessera.h and libtessera are of");
  CHECK(strcmp(tessera_result_name(TESSERA_UNAVAILABLE), "TESSERA_UNAVAILABLE") == 0);
  CHECK(strcmp(tessera_result_name((tessera_result)99), "unknown result") == 0);
}

static void plans(void) {
  static const int64_t backwards[] = {0, 20, 10, kTokens};
  static const tessera_slice twice[] = {{0, 8, 0, 8, TESSERA_SLICE_FULL, 0}, {4, 8, 4, 8, TESSERA_SLICE_FULL, 0}};
  tessera_mask mask = TESSERA_INIT(tessera_mask);
  tessera_problem good = TESSERA_INIT(tessera_problem), problem;
  tessera_plan_options good_options = TESSERA_INIT(tessera_plan_options), options;
  tessera_plan* plan = NULL;
  good.query_tokens = good.key_tokens = kTokens;
  good.query_heads = kQueryHeads;
  good.kv_heads = kKvHeads;
  good.qk_width = kQkWidth;
  good.v_width = kVWidth;
  good.mask = &mask;
  good_options.ranks = 2;
#define REFUSED_PLAN(code, words, ...)                                          \
  do {                                                                          \
    problem = good;                                                             \
    options = good_options;                                                     \
    memset(&mask, 0, sizeof mask);                                              \
    mask.struct_size = sizeof mask;                                             \
    mask.api_version = TESSERA_API_VERSION;                                     \
    __VA_ARGS__;                                                                \
    CHECK_REFUSED(tessera_plan_create(&problem, &options, &plan), code, words); \
    CHECK(plan == NULL);                                                        \
  } while (0)
  CHECK_REFUSED(tessera_plan_create(NULL, &good_options, &plan), TESSERA_INVALID_ARGUMENT, "problem is NULL");
  CHECK_REFUSED(tessera_plan_create(&good, NULL, &plan), TESSERA_INVALID_ARGUMENT, "options is NULL");
  CHECK_REFUSED(tessera_plan_create(&good, &good_options, NULL), TESSERA_INVALID_ARGUMENT, "plan is NULL");
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "problem: struct_size is 8; it must be at least", problem.struct_size = 8);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "options: struct_size is 0", options.struct_size = 0);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "mask: struct_size is 16", mask.struct_size = 16);
  REFUSED_PLAN(TESSERA_FAILED_PRECONDITION, "problem: api_version is 7; the loaded", problem.api_version = 7);
  REFUSED_PLAN(TESSERA_FAILED_PRECONDITION, "mask: api_version is 0; the loaded", mask.api_version = 0);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "problem: dtype is 9; it must be", problem.dtype = 9);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "problem: query_tokens is -1; it must be", problem.query_tokens = -1);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "query_heads is 4 and kv_heads 3", problem.kv_heads = 3);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "qk_width is 257", problem.qk_width = 257);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "mask: kind is 9; it must be", mask.kind = 9);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "documents need as many keys as queries", mask.kind = TESSERA_MASK_DOCUMENTS,
               problem.key_tokens = 5);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "mask: document_type is 4", mask.kind = TESSERA_MASK_DOCUMENTS,
               mask.document_type = 4);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "mask: boundaries is NULL", mask.kind = TESSERA_MASK_DOCUMENTS,
               mask.boundary_count = 2);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "boundary 2 is 10 after 20", mask.kind = TESSERA_MASK_DOCUMENTS,
               mask.boundaries = backwards, mask.boundary_count = 4);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "mask: number of slices is -1", mask.kind = TESSERA_MASK_SLICES,
               mask.slice_count = -1);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "overlap", mask.kind = TESSERA_MASK_SLICES, mask.slices = twice,
               mask.slice_count = 2);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "ranks is 0; it must be from 1", options.ranks = 0);
  REFUSED_PLAN(TESSERA_INVALID_ARGUMENT, "zigzagged", options.strategy = "zigzagged");

  /* A longer struct, as a newer header would have: refused only when what is unknown is set. */
  struct {
    tessera_plan_options options;
    int64_t newer;
  } longer;
  memset(&longer, 0, sizeof longer);
  longer.options = good_options;
  longer.options.struct_size = sizeof longer;
  memset(&mask, 0, sizeof mask);
  mask.struct_size = sizeof mask;
  mask.api_version = TESSERA_API_VERSION;
  longer.newer = 1;
  CHECK_REFUSED(tessera_plan_create(&good, &longer.options, &plan), TESSERA_INVALID_ARGUMENT,
                "options: a member beyond");
  longer.newer = 0;
  CHECK_OK(tessera_plan_create(&good, &longer.options, &plan));

  int64_t rows = 0, tokens[kTokens];
  char* text = NULL;
  int ranks = 0;
  uint64_t digest = 0;
  CHECK_OK(tessera_plan_ranks(plan, &ranks));
  CHECK(ranks == 2);
  CHECK_OK(tessera_plan_digest(plan, &digest));
  CHECK(digest != 0);
  CHECK_REFUSED(tessera_plan_local_rows(plan, 2, &rows, &rows), TESSERA_INVALID_ARGUMENT,
                "rank is 2; it must be from 0 to 1");
  CHECK_REFUSED(tessera_plan_local_rows(plan, 0, NULL, &rows), TESSERA_INVALID_ARGUMENT, "query_rows is NULL");
  CHECK_REFUSED(tessera_plan_local_tokens(plan, 0, 2, tokens, kTokens), TESSERA_INVALID_ARGUMENT, "side is 2");
  CHECK_REFUSED(tessera_plan_local_tokens(plan, 0, TESSERA_KEYS, tokens, 3), TESSERA_INVALID_ARGUMENT,
                "capacity is 3; rank 0 has");
  CHECK_REFUSED(tessera_plan_json(plan, 2, &text), TESSERA_INVALID_ARGUMENT, "pass is 2");
  CHECK_OK(tessera_plan_json(plan, TESSERA_BACKWARD, &text));
  CHECK(strstr(text, "tessera-plan-1") != NULL);
  tessera_text_free(text);
  CHECK_OK(tessera_plan_describe(plan, &text));
  CHECK(strlen(text) > 0);
  tessera_text_free(text);
  tessera_plan_destroy(plan);
  tessera_plan_destroy(NULL);
}

static void communicators(void) {
  struct mailbox mailbox;
  struct mailbox_rank end = {&mailbox, 0};
  tessera_comm* comm = NULL;
  mailbox_init(&mailbox);
  tessera_callbacks callbacks = mailbox_callbacks(&end, 1);
#define REFUSED_CALLBACKS(code, words, ...)                                       \
  do {                                                                            \
    callbacks = mailbox_callbacks(&end, 1);                                       \
    __VA_ARGS__;                                                                  \
    CHECK_REFUSED(tessera_comm_create_callbacks(&callbacks, &comm), code, words); \
    CHECK(comm == NULL);                                                          \
  } while (0)
  CHECK_REFUSED(tessera_comm_create_callbacks(NULL, &comm), TESSERA_INVALID_ARGUMENT, "callbacks is NULL");
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "callbacks: the function 'isend' is missing", callbacks.isend = NULL);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "callbacks: the function 'irecv' is missing", callbacks.irecv = NULL);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "callbacks: the function 'test' is missing", callbacks.test = NULL);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "callbacks: struct_size is 40", callbacks.struct_size = 40);
  REFUSED_CALLBACKS(TESSERA_FAILED_PRECONDITION, "callbacks: api_version is 2", callbacks.api_version = 2);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "size is 0; it must be at least 1", callbacks.size = 0);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "rank is 1; it must be from 0 to 0", callbacks.rank = 1);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "deadline_ms is -5", callbacks.deadline_ms = -5);
  REFUSED_CALLBACKS(TESSERA_INVALID_ARGUMENT, "tag_limit is 4294967296", callbacks.tag_limit = INT64_C(1) << 32);
  REFUSED_CALLBACKS(TESSERA_FAILED_PRECONDITION, "messages need tags up to 2097151", callbacks.tag_limit = 1000);
  mailbox_free(&mailbox);

  CHECK_REFUSED(tessera_comm_create_self(NULL), TESSERA_INVALID_ARGUMENT, "comm is NULL");
  CHECK_REFUSED(tessera_comm_create_inproc(0, 0, &comm), TESSERA_INVALID_ARGUMENT, "size is 0; it must be from 1");
  CHECK_REFUSED(tessera_comm_create_inproc(1, -1, &comm), TESSERA_INVALID_ARGUMENT, "deadline_ms is -1");
  CHECK_REFUSED(tessera_comm_create_mpi(NULL, 0, &comm), TESSERA_INVALID_ARGUMENT, "mpi_comm is NULL");
  CHECK_REFUSED(tessera_comm_rank(NULL, NULL), TESSERA_INVALID_ARGUMENT, "comm is NULL");
  CHECK_REFUSED(tessera_comm_abort(NULL), TESSERA_INVALID_ARGUMENT, "comm is NULL");
  tessera_comm_destroy(NULL);
}

static void executions(void) {
  static float q[kTokens * kQueryHeads * kQkWidth], k[kTokens * kKvHeads * kQkWidth], v[kTokens * kKvHeads * kVWidth];
  static float out[kTokens * kQueryHeads * kVWidth], lse[kTokens * kQueryHeads];
  static float dout[kTokens * kQueryHeads * kVWidth], dq[kTokens * kQueryHeads * kQkWidth];
  static float dk[kTokens * kKvHeads * kQkWidth], dv[kTokens * kKvHeads * kVWidth];
  float sinks[kQueryHeads] = {0}, sink_gradient[kQueryHeads];
  tessera_tensor query = dense(q, kTokens, kQueryHeads, kQkWidth), key = dense(k, kTokens, kKvHeads, kQkWidth);
  tessera_tensor value = dense(v, kTokens, kKvHeads, kVWidth), output = dense(out, kTokens, kQueryHeads, kVWidth);
  tessera_tensor log_sum = dense(lse, kTokens, kQueryHeads, 1), output_gradient = output, query_gradient = query;
  tessera_tensor key_gradient = key, value_gradient = value, changed;
  output_gradient.data = dout;
  query_gradient.data = dq;
  key_gradient.data = dk;
  value_gradient.data = dv;

  tessera_comm* comm = NULL;
  tessera_plan *plan = make_plan("auto", 1), *plan_for_two = make_plan("ring", 2);
  tessera_attention* attention = NULL;
  tessera_attention_options options = TESSERA_INIT(tessera_attention_options);
  CHECK_OK(tessera_comm_create_self(&comm));
  options.backward = 1;
  CHECK_REFUSED(tessera_attention_create(NULL, plan, &options, &attention), TESSERA_INVALID_ARGUMENT, "comm is NULL");
  CHECK_REFUSED(tessera_attention_create(comm, NULL, &options, &attention), TESSERA_INVALID_ARGUMENT, "plan is NULL");
  CHECK_REFUSED(tessera_attention_create(comm, plan, &options, NULL), TESSERA_INVALID_ARGUMENT, "attention is NULL");
  CHECK_REFUSED(tessera_attention_create(comm, plan_for_two, &options, &attention), TESSERA_INVALID_ARGUMENT,
                "the plan is for 2 ranks");
  options.kernel = "abacus";
  CHECK_REFUSED(tessera_attention_create(comm, plan, &options, &attention), TESSERA_NOT_FOUND,
                "no attention kernel called \"abacus\" serves fp32");
  options.kernel = NULL;
  options.threads = -1;
  CHECK_REFUSED(tessera_attention_create(comm, plan, &options, &attention), TESSERA_INVALID_ARGUMENT, "threads is -1");
  options.threads = 0;
  CHECK_OK(tessera_attention_create(comm, plan, &options, &attention));

  tessera_forward_args forward = TESSERA_INIT(tessera_forward_args);
  forward.query = &query;
  forward.key = &key;
  forward.value = &value;
  forward.output = &output;
  forward.lse = &log_sum;
  forward.sinks = sinks;
  tessera_backward_args backward = TESSERA_INIT(tessera_backward_args);
  backward.query = &query;
  backward.key = &key;
  backward.value = &value;
  backward.output = &output;
  backward.lse = &log_sum;
  backward.output_gradient = &output_gradient;
  backward.query_gradient = &query_gradient;
  backward.key_gradient = &key_gradient;
  backward.value_gradient = &value_gradient;
  backward.sinks = sinks;
  backward.sink_gradient = sink_gradient;

#define REFUSED_FORWARD(code, words) CHECK_REFUSED(tessera_attention_forward(attention, &forward), code, words)
#define REFUSED_BACKWARD(code, words) CHECK_REFUSED(tessera_attention_backward(attention, &backward), code, words)
  REFUSED_BACKWARD(TESSERA_FAILED_PRECONDITION, "backward: forward has not run");
  CHECK_REFUSED(tessera_attention_forward(NULL, &forward), TESSERA_INVALID_ARGUMENT, "attention is NULL");
  CHECK_REFUSED(tessera_attention_forward(attention, NULL), TESSERA_INVALID_ARGUMENT, "args is NULL");
  forward.struct_size = 24;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "args: struct_size is 24");
  forward.struct_size = sizeof forward;
  forward.query = NULL;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "query is NULL");
  forward.query = &query;
  forward.sinks = NULL;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "sinks: 0 values; the problem needs 4");
  forward.sinks = sinks;

  forward.key = &changed;
  changed = key, changed.shape[0] = kTokens - 1;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: rows is 36; this rank's plan needs 37");
  changed = key, changed.shape[1] = -2;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: shape[1] is -2");
  changed = key, changed.shape[1] = INT64_C(1) << 40;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: shape[1] is 1099511627776");
  changed = key, changed.shape[0] = INT64_MAX;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: its shape has more than 2^48 elements");
  changed = key, changed.strides[0] = INT64_MAX, changed.strides[2] = 1;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: its strides span more than 2^48 elements");
  changed = key, changed.strides[0] = -32, changed.strides[1] = 16, changed.strides[2] = 1;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: strides[0] is -32");
  changed = key, changed.strides[0] = 32, changed.strides[1] = 16, changed.strides[2] = 2;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: strides[2] is 2");
  changed = key, changed.dtype = 5;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: dtype is 5");
  changed = key, changed.dtype = TESSERA_BFLOAT16;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: dtype is bf16; this rank's plan needs fp32");
  changed = key, changed.data = NULL;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: data is null");
  changed = key, changed.data = (char*)k + 1;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "key: data is not aligned");
  forward.key = &key;
  forward.output = &changed;
  changed = output, changed.data = q;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "output overlaps query");
  changed = output, changed.strides[0] = kVWidth, changed.strides[1] = kVWidth, changed.strides[2] = 1;
  REFUSED_FORWARD(TESSERA_INVALID_ARGUMENT, "output: strides 8, 8 let elements of a written tensor");
  forward.output = &output;

  tessera_stats stats = TESSERA_INIT(tessera_stats);
  CHECK_OK(tessera_attention_wait(attention)); /* nothing was started */
  CHECK_OK(tessera_attention_start_forward(attention, &forward));
  REFUSED_FORWARD(TESSERA_FAILED_PRECONDITION, "tessera_attention_wait not called");
  CHECK_REFUSED(tessera_attention_stats(attention, &stats), TESSERA_FAILED_PRECONDITION, "still running");
  CHECK_OK(tessera_attention_wait(attention));
  stats.struct_size = 4;
  CHECK_REFUSED(tessera_attention_stats(attention, &stats), TESSERA_INVALID_ARGUMENT, "stats: struct_size is 4");

  backward.lse = &changed;
  changed = log_sum, changed.shape[0] = kTokens + 1;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "lse: rows is 38; this rank's plan needs 37");
  changed = log_sum, changed.shape[1] = 1;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "lse: heads is 1; this rank's plan needs 4");
  backward.lse = &log_sum;
  backward.query_gradient = &query;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "query_gradient overlaps query");
  backward.query_gradient = &query_gradient;
  changed = value_gradient, changed.data = dk + 8;
  backward.value_gradient = &changed;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "key_gradient overlaps value_gradient");
  backward.value_gradient = NULL;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "value_gradient is NULL");
  backward.value_gradient = &value_gradient;
  backward.sink_gradient = NULL;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "sink_gradient: 0 values; the problem needs 4");
  backward.sink_gradient = sinks + 1;
  REFUSED_BACKWARD(TESSERA_INVALID_ARGUMENT, "sink_gradient overlaps sinks");
  backward.sink_gradient = sink_gradient;
  CHECK_OK(tessera_attention_backward(attention, &backward)); /* none of the refusals did harm */
  tessera_attention_destroy(attention);

  options.backward = 0;
  CHECK_OK(tessera_attention_create(comm, plan, &options, &attention));
  tessera_comm_destroy(comm); /* the attention keeps it */
  tessera_plan_destroy(plan);
  CHECK_OK(tessera_attention_forward(attention, &forward));
  REFUSED_BACKWARD(TESSERA_FAILED_PRECONDITION, "created without options.backward");
  tessera_attention_destroy(attention);
  tessera_attention_destroy(NULL);
  tessera_plan_destroy(plan_for_two);
}

int main(void) {
  versions();
  plans();
  communicators();
  executions();
  puts("every bad input was refused by name");
  return 0;
}
