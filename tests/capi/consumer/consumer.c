/* Causal attention on one rank with the installed header and library. */
#include <stdio.h>
#include <tessera.h>

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, tessera_last_error());
  return 1;
}

int main(void) {
  enum { kTokens = 8, kHeads = 2, kWidth = 16 };
  float query[kTokens * kHeads * kWidth] = {0}, output[kTokens * kHeads * kWidth], lse[kTokens * kHeads];

  /* The program was compiled with one release of tessera.h and may be run with another library. */
  if (tessera_check_version(TESSERA_API_VERSION) != TESSERA_OK) return failed("version");

  tessera_mask mask = TESSERA_INIT(tessera_mask);
  mask.kind = TESSERA_MASK_CAUSAL;
  tessera_problem problem = TESSERA_INIT(tessera_problem);
  problem.dtype = TESSERA_FLOAT32;
  problem.query_tokens = problem.key_tokens = kTokens;
  problem.query_heads = problem.kv_heads = kHeads;
  problem.qk_width = problem.v_width = kWidth;
  problem.mask = &mask;
  tessera_plan_options options = TESSERA_INIT(tessera_plan_options);
  options.ranks = 1;
  tessera_plan* plan = NULL;
  if (tessera_plan_create(&problem, &options, &plan) != TESSERA_OK) return failed("plan");

  tessera_comm* comm = NULL;
  if (tessera_comm_create_self(&comm) != TESSERA_OK) return failed("communicator");
  tessera_attention* attention = NULL;
  if (tessera_attention_create(comm, plan, NULL, &attention) != TESSERA_OK) return failed("attention");

  for (int i = 0; i < kTokens * kHeads * kWidth; ++i) query[i] = (float)(i + 1) / (kHeads * kWidth);
  const tessera_tensor input = {.data = query, .dtype = TESSERA_FLOAT32, .shape = {kTokens, kHeads, kWidth}};
  tessera_tensor result = input;
  result.data = output;
  const tessera_tensor log_sum = {.data = lse, .dtype = TESSERA_FLOAT32, .shape = {kTokens, kHeads, 1}};
  tessera_forward_args args = TESSERA_INIT(tessera_forward_args);
  args.query = args.key = args.value = &input;
  args.output = &result;
  args.lse = &log_sum;
  if (tessera_attention_forward(attention, &args) != TESSERA_OK) return failed("forward");
  printf("tessera %s, kernel %s: output[0] = %g\n", tessera_version(), tessera_attention_kernel(attention), output[0]);

  tessera_attention_destroy(attention);
  tessera_comm_destroy(comm);
  tessera_plan_destroy(plan);
  return output[0] == query[0] ? 0 : 1; /* the first token attends itself only */
}
