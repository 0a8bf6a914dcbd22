/* Tessera from C: exact attention whose tokens are spread over ranks. C99, self-contained.
 *
 * Plan once, execute many times:
 *
 *   tessera_check_version(TESSERA_API_VERSION);
 *   tessera_comm_create_...(&comm);                    this rank's end of the world
 *   tessera_plan_create(&problem, &options, &plan);    pure: every rank makes the same plan without talking
 *   tessera_plan_local_tokens(plan, rank, ...);        which tokens this rank holds, in which order
 *   tessera_attention_create(comm, plan, ..., &attention);
 *   tessera_attention_forward(attention, &forward);
 *   tessera_attention_backward(attention, &backward);
 *
 * Results. Every function that can fail returns a tessera_result; the text, which names the argument, its value and
 * what is allowed, is tessera_last_error() of the calling thread. Output arguments are written on success only. NULL
 * where a pointer is required, a struct_size that is too small and an api_version of another release are
 * TESSERA_INVALID_ARGUMENT and TESSERA_FAILED_PRECONDITION, never a crash. No exception leaves the library, and it
 * neither prints nor ends the process.
 *
 * Ownership. A handle belongs to the caller until its destroy function; destroying NULL does nothing. A plan may be
 * destroyed while an attention made from it lives, and so may a communicator (it goes with the last attention).
 * Memory given to the library stays the caller's and is not kept beyond the call, except where "start" says so.
 *
 * Threads. A handle is used by one thread at a time; a plan, which never changes, by any number.
 *
 * "Collective" functions are called by all ranks of the communicator, in the same order. A wait for a peer that is dead
 * or stalled ends in TESSERA_UNAVAILABLE or TESSERA_DEADLINE_EXCEEDED. After such an error the communicator and its
 * attentions can only be destroyed.
 */
#ifndef TESSERA_H_
#define TESSERA_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when a program built with an older header would no longer work. */
#define TESSERA_API_VERSION 1

/* Initialises a struct; members not set afterwards are zero, which is always the documented default:
 *   tessera_problem problem = TESSERA_INIT(tessera_problem); */
#ifdef __cplusplus
#define TESSERA_INIT(type)                     \
  [] {                                         \
    type initial{};                            \
    initial.struct_size = sizeof(type);        \
    initial.api_version = TESSERA_API_VERSION; \
    return initial;                            \
  }()
#else
#define TESSERA_INIT(type) \
  { .struct_size = sizeof(type), .api_version = TESSERA_API_VERSION }
#endif

#if defined(__GNUC__)
#define TESSERA_API __attribute__((visibility("default")))
#else
#define TESSERA_API
#endif

typedef enum tessera_result {
  TESSERA_OK = 0,
  TESSERA_CANCELLED = 1,
  TESSERA_UNKNOWN = 2,
  TESSERA_INVALID_ARGUMENT = 3,  /* an argument is wrong whatever the state */
  TESSERA_DEADLINE_EXCEEDED = 4, /* no progress for the communicator's deadline */
  TESSERA_NOT_FOUND = 5,         /* no kernel serves the problem */
  TESSERA_ALREADY_EXISTS = 6,
  TESSERA_PERMISSION_DENIED = 7,
  TESSERA_RESOURCE_EXHAUSTED = 8,  /* no memory */
  TESSERA_FAILED_PRECONDITION = 9, /* out of order, ranks disagree, or versions do not match */
  TESSERA_ABORTED = 10,
  TESSERA_OUT_OF_RANGE = 11,
  TESSERA_UNIMPLEMENTED = 12, /* the library was built without this */
  TESSERA_INTERNAL = 13,
  TESSERA_UNAVAILABLE = 14, /* a peer died or stalled, or a transport failed */
  TESSERA_DATA_LOSS = 15,
  TESSERA_UNAUTHENTICATED = 16
} tessera_result;

/* ---- Version and errors ---- */

TESSERA_API int tessera_api_version(void);     /* TESSERA_API_VERSION of the library that is loaded */
TESSERA_API const char* tessera_version(void); /* its release, such as "0.1.0" */
/* TESSERA_FAILED_PRECONDITION, naming both, when the library does not serve programs built with `header_version`. */
TESSERA_API tessera_result tessera_check_version(int header_version);
/* The text of the last function of this thread that failed; "" when none has. Valid until the next one fails. */
TESSERA_API const char* tessera_last_error(void);
/* "TESSERA_OK" and so on; "unknown result" for other numbers. */
TESSERA_API const char* tessera_result_name(tessera_result result);

/* ---- What is computed ---- */

typedef enum tessera_dtype {
  TESSERA_FLOAT32 = 0,
  TESSERA_BFLOAT16 = 1,
  TESSERA_FLOAT16 = 2,
  TESSERA_FLOAT64 = 3 /* for checking gradients: served by the reference kernel only, slowly */
} tessera_dtype;

/* In a slice [q0,q1) x [k0,k1): causal keeps k - k1 <= q - q1 (aligned bottom right), inverse causal keeps
 * k - k0 >= q - q0 (aligned top left), bi-causal keeps both. */
typedef enum tessera_slice_type {
  TESSERA_SLICE_FULL = 0,
  TESSERA_SLICE_CAUSAL = 1,
  TESSERA_SLICE_INVERSE_CAUSAL = 2,
  TESSERA_SLICE_BI_CAUSAL = 3
} tessera_slice_type;

typedef struct tessera_slice {
  int64_t query_begin, query_end; /* global query tokens [begin, end) */
  int64_t key_begin, key_end;     /* global key tokens [begin, end) */
  int32_t type;                   /* tessera_slice_type */
  int32_t reserved;               /* 0 */
} tessera_slice;

typedef enum tessera_mask_kind {
  TESSERA_MASK_FULL = 0,
  TESSERA_MASK_CAUSAL = 1,
  TESSERA_MASK_DOCUMENTS = 2, /* packed back to back; tokens attend within their document */
  TESSERA_MASK_SLICES = 3     /* any list whose slices never cover a (query, key) pair twice */
} tessera_mask_kind;

typedef struct tessera_mask {
  size_t struct_size;
  int32_t api_version;
  int32_t kind; /* tessera_mask_kind */
  /* Documents: [boundary_count] numbers from 0 to the length, never decreasing; document i is
   * [boundaries[i], boundaries[i+1]). Needs query_tokens == key_tokens. */
  const int64_t* boundaries;
  int64_t boundary_count;
  int32_t document_type; /* tessera_slice_type within each document */
  /* Not 0: query q attends only keys in [q + offset - window_left, q + offset + window_right], where offset aligns the
   * last query with the last key of the slice. Negative means unbounded on that side. */
  int32_t use_window;
  int64_t window_left, window_right;
  const tessera_slice* slices; /* slices: [slice_count] */
  int64_t slice_count;
} tessera_mask;

/* query [query_tokens, query_heads, qk_width], key [key_tokens, kv_heads, qk_width] and value [key_tokens, kv_heads,
 * v_width] give output [query_tokens, query_heads, v_width] and the natural log-sum-exp of the scores. query_heads is a
 * multiple of kv_heads; nothing else need divide anything. A batch is a mask of documents. */
typedef struct tessera_problem {
  size_t struct_size;
  int32_t api_version;
  int32_t dtype; /* tessera_dtype of query, key, value, output and their gradients */
  int64_t query_tokens, key_tokens;
  int32_t query_heads, kv_heads;
  int32_t qk_width, v_width; /* from 1 to 256 */
  float scale;               /* 0: qk_width^-1/2 */
  float soft_cap;            /* 0: off; otherwise scores become soft_cap * tanh(score / soft_cap) */
  int32_t alibi;             /* not 0: slopes [query_heads] are given at execution */
  int32_t sink;              /* not 0: sink logits [query_heads] are given at execution */
  const tessera_mask* mask;  /* NULL: full */
} tessera_problem;

/* ---- Plans ---- */

typedef struct tessera_plan tessera_plan;

typedef struct tessera_plan_options {
  size_t struct_size;
  int32_t api_version;
  int32_t ranks;          /* at least 1 */
  const char* strategy;   /* "ring", "zigzag", "striped", "balanced", "allgather", "ulysses", "grid:HxS",
                             "double-ring[:NODES]", "tree" or "auto"; NULL: "auto" */
  int32_t ranks_per_node; /* for double-ring without :NODES; 0: unknown */
  int32_t reserved;       /* 0 */
} tessera_plan_options;

typedef enum tessera_side { TESSERA_QUERIES = 0, TESSERA_KEYS = 1 } tessera_side;
typedef enum tessera_pass { TESSERA_FORWARD = 0, TESSERA_BACKWARD = 1 } tessera_pass;

/* Local. TESSERA_INVALID_ARGUMENT names the field, or why the strategy cannot serve the problem and one that can. */
TESSERA_API tessera_result tessera_plan_create(const tessera_problem* problem, const tessera_plan_options* options,
                                               tessera_plan** plan);
TESSERA_API void tessera_plan_destroy(tessera_plan* plan);
TESSERA_API tessera_result tessera_plan_ranks(const tessera_plan* plan, int* ranks);
/* Rows of `rank`'s query and key tensors. */
TESSERA_API tessera_result tessera_plan_local_rows(const tessera_plan* plan, int rank, int64_t* query_rows,
                                                   int64_t* key_rows);
/* The global token of every local row of a tessera_side, in order, into tokens [capacity]; capacity must be at least
 * the number of rows. */
TESSERA_API tessera_result tessera_plan_local_tokens(const tessera_plan* plan, int rank, int side, int64_t* tokens,
                                                     int64_t capacity);
/* A digest that is equal on ranks that agree. */
TESSERA_API tessera_result tessera_plan_digest(const tessera_plan* plan, uint64_t* digest);
/* One line, and every step of every rank for a tessera_pass as JSON (schema "tessera-plan-1"). The text belongs to the
 * caller: tessera_text_free. */
TESSERA_API tessera_result tessera_plan_describe(const tessera_plan* plan, char** text);
TESSERA_API tessera_result tessera_plan_json(const tessera_plan* plan, int pass, char** text);
TESSERA_API void tessera_text_free(char* text);

/* ---- Communicators ---- */

typedef struct tessera_comm tessera_comm;

/* One rank alone. Local. */
TESSERA_API tessera_result tessera_comm_create_self(tessera_comm** comm);

/* `size` ranks within this process, for tests: comms [size] receives one communicator per rank, each to be used by a
 * thread of its own. deadline_ms: 0 means 30000. Local. */
TESSERA_API tessera_result tessera_comm_create_inproc(int size, int64_t deadline_ms, tessera_comm** comms);

/* `mpi_comm` points to an intracommunicator (an MPI_Comm of the MPI this library was built with); the library works on
 * duplicates of it. deadline_ms: 0 means 30000. Collective over it. MPI must be initialised with MPI_THREAD_MULTIPLE
 * (TESSERA_FAILED_PRECONDITION otherwise), because a heartbeat has a thread of its own. Destroying the communicator is
 * collective too and precedes MPI_Finalize; after an error it frees nothing and the process must end without
 * MPI_Finalize. TESSERA_UNIMPLEMENTED in a library built without MPI. */
TESSERA_API tessera_result tessera_comm_create_mpi(const void* mpi_comm, int64_t deadline_ms, tessera_comm** comm);

/* A transport of the caller: nonblocking messages between ranks. Functions return 0 for success; anything else breaks
 * the communicator. They are never called by two threads at once, but not always by the thread that created it, and
 * must not block: the time inside a function is the one wait that has no deadline. */
typedef struct tessera_callbacks {
  size_t struct_size;
  int32_t api_version;
  int32_t rank, size;  /* this rank, in [0, size) */
  int32_t reserved;    /* 0 */
  void* context;       /* passed to every function; outlives the communicator */
  int64_t deadline_ms; /* 0 means 30000. There is no heartbeat: a rank that has waited this long without a message or a
                          step of its own gives up, so it must exceed the longest time that a peer computes between two
                          messages. */
  int64_t tag_limit;   /* tags lie in [0, tag_limit); 0 means 2^31, the least is 2^21 and grids need more */
  /* Start a message of `bytes` bytes (zero too) and store a handle, which may be NULL, in *request. The buffer stays
   * valid until the message is done. Messages of one (sender, receiver, tag) are matched in order; a rank may send to
   * itself; a receive names the length that is sent, and may be started before or after its send. */
  int (*isend)(void* context, const void* data, size_t bytes, int peer, int64_t tag, void** request);
  int (*irecv)(void* context, void* data, size_t bytes, int peer, int64_t tag, void** request);
  /* Store in *done whether the message is done; after that, or a failure, the handle is not used again. */
  int (*test)(void* context, void* request, int* done);
  /* The rest may be NULL. */
  int (*cancel)(void* context, void* request);      /* take back a message after an error; ends the handle */
  int (*alive)(void* context, int peer);            /* 0 when `peer` is known to be dead */
  void (*abort)(void* context, const char* reason); /* this rank failed or gave up; once, the place to tell others */
} tessera_callbacks;

/* Local. TESSERA_INVALID_ARGUMENT names a missing function or a wrong number. */
TESSERA_API tessera_result tessera_comm_create_callbacks(const tessera_callbacks* callbacks, tessera_comm** comm);

TESSERA_API tessera_result tessera_comm_rank(const tessera_comm* comm, int* rank);
TESSERA_API tessera_result tessera_comm_size(const tessera_comm* comm, int* size);
/* Tells the peers that this rank cannot go on, so that their waits end in an error at once instead of at the deadline.
 * Not collective. */
TESSERA_API tessera_result tessera_comm_abort(tessera_comm* comm);
TESSERA_API void tessera_comm_destroy(tessera_comm* comm);

/* ---- Execution ---- */

/* A view of [rows, heads, width] in host memory. Strides are in elements; all 0 means dense (row-major). The width has
 * stride 1, the others any stride of at least 0 that keeps the elements of a written tensor apart. A tensor that is not
 * dense costs a copy. Never grows: its layout is part of TESSERA_API_VERSION. */
typedef struct tessera_tensor {
  void* data;       /* may be NULL without elements; inputs are not written to */
  int32_t dtype;    /* tessera_dtype */
  int32_t reserved; /* 0 */
  int64_t shape[3]; /* rows, heads, width */
  int64_t strides[3];
} tessera_tensor;

typedef struct tessera_attention tessera_attention;

typedef struct tessera_attention_options {
  size_t struct_size;
  int32_t api_version;
  int32_t threads;    /* compute threads of this rank; 0: 1 */
  int32_t backward;   /* not 0: also prepare the backward pass */
  int32_t reserved;   /* 0 */
  const char* kernel; /* implementation by name; NULL: the fastest that serves the problem */
} tessera_attention_options;

/* Local rows in the order of tessera_plan_local_tokens; host memory. */
typedef struct tessera_forward_args {
  size_t struct_size;
  int32_t api_version;
  int32_t reserved;             /* 0 */
  const tessera_tensor* query;  /* [query rows, query_heads, qk_width] */
  const tessera_tensor* key;    /* [key rows, kv_heads, qk_width] */
  const tessera_tensor* value;  /* [key rows, kv_heads, v_width] */
  const tessera_tensor* output; /* [query rows, query_heads, v_width], written */
  const tessera_tensor* lse;    /* [query rows, query_heads, 1] fp32 (fp64 in an fp64 problem), natural logarithm,
                                   written; -inf where a row attends nothing */
  const float* alibi_slopes;    /* [query_heads]; exactly when the problem has alibi, otherwise NULL */
  const float* sinks;           /* [query_heads]; exactly when the problem has a sink, otherwise NULL */
} tessera_forward_args;

/* Gradients are overwritten, not added to; none may overlap another tensor. */
typedef struct tessera_backward_args {
  size_t struct_size;
  int32_t api_version;
  int32_t reserved;            /* 0 */
  const tessera_tensor* query; /* as given to forward */
  const tessera_tensor* key;
  const tessera_tensor* value;
  const tessera_tensor* output; /* as forward left it */
  const tessera_tensor* lse;
  const tessera_tensor* output_gradient; /* [query rows, query_heads, v_width] */
  const tessera_tensor* query_gradient;  /* [query rows, query_heads, qk_width], written */
  const tessera_tensor* key_gradient;    /* [key rows, kv_heads, qk_width], written */
  const tessera_tensor* value_gradient;  /* [key rows, kv_heads, v_width], written */
  const float* alibi_slopes;             /* as given to forward */
  const float* sinks;
  float* sink_gradient; /* [query_heads], summed over all ranks, written; exactly with a sink */
} tessera_backward_args;

typedef struct tessera_stats {
  size_t struct_size;
  int32_t api_version;
  int32_t reserved;
  double seconds;         /* wall clock of this rank's program */
  double compute_seconds; /* inside kernels */
  double exposed_seconds; /* compute idle while communication was outstanding */
  int64_t bytes_sent, bytes_received, messages_sent, messages_received; /* payload */
  int64_t slot_bytes;                                                   /* memory held for the plan's buffers */
} tessera_stats;

/* Collective. `options` may be NULL. TESSERA_FAILED_PRECONDITION on every rank when one has another problem or plan;
 * TESSERA_INVALID_ARGUMENT when the communicator's size is not the plan's; TESSERA_NOT_FOUND, with each kernel's
 * reason, when none serves the problem or has the name asked for. */
TESSERA_API tessera_result tessera_attention_create(tessera_comm* comm, const tessera_plan* plan,
                                                    const tessera_attention_options* options,
                                                    tessera_attention** attention);
/* Collective with an MPI communicator that was destroyed before. Waits for a started execution. */
TESSERA_API void tessera_attention_destroy(tessera_attention* attention);

/* Collective; return when this rank's outputs are complete. Wrong tensors are TESSERA_INVALID_ARGUMENT, found before
 * anything moves, so that the call can be repeated (within the deadline of the peers). Backward needs options.backward
 * and an earlier forward (TESSERA_FAILED_PRECONDITION). After any other error the outputs are undefined and the
 * attention reports only that error. */
TESSERA_API tessera_result tessera_attention_forward(tessera_attention* attention, const tessera_forward_args* args);
TESSERA_API tessera_result tessera_attention_backward(tessera_attention* attention, const tessera_backward_args* args);

/* The same in two halves. Between start and wait the memory of the tensors and vectors (not the structs) stays alive
 * and untouched. One execution at a time: a second start is TESSERA_FAILED_PRECONDITION. wait without start is
 * TESSERA_OK. */
TESSERA_API tessera_result tessera_attention_start_forward(tessera_attention* attention,
                                                           const tessera_forward_args* args);
TESSERA_API tessera_result tessera_attention_start_backward(tessera_attention* attention,
                                                            const tessera_backward_args* args);
TESSERA_API tessera_result tessera_attention_wait(tessera_attention* attention);

/* Of the last complete execution. The library writes the first stats->struct_size bytes that it knows. */
TESSERA_API tessera_result tessera_attention_stats(const tessera_attention* attention, tessera_stats* stats);
/* The kernel that runs; the text lives as long as the attention. NULL when attention is. */
TESSERA_API const char* tessera_attention_kernel(const tessera_attention* attention);

#ifdef __cplusplus
}
#endif

#endif /* TESSERA_H_ */
