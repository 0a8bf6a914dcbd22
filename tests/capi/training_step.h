/* One forward and backward pass over any communicator, and the same by the definition in doubles. */
#ifndef TESSERA_TESTS_CAPI_TRAINING_STEP_H_
#define TESSERA_TESTS_CAPI_TRAINING_STEP_H_

#include "tessera.h"

enum { kTokens = 37, kQueryHeads = 4, kKvHeads = 2, kQkWidth = 16, kVWidth = 8 };

/* Whole sequences, [tokens, heads, width] fp32. */
struct tensors {
  float query[kTokens * kQueryHeads * kQkWidth], query_gradient[kTokens * kQueryHeads * kQkWidth];
  float key[kTokens * kKvHeads * kQkWidth], key_gradient[kTokens * kKvHeads * kQkWidth];
  float value[kTokens * kKvHeads * kVWidth], value_gradient[kTokens * kKvHeads * kVWidth];
  float output[kTokens * kQueryHeads * kVWidth], output_gradient[kTokens * kQueryHeads * kVWidth];
  float lse[kTokens * kQueryHeads];
  float sinks[kQueryHeads], sink_gradient[kQueryHeads];
};

/* Fills query, key, value, output_gradient and sinks with numbers in [-1, 1]. */
void fill_inputs(struct tensors* tensors);
/* The causal plan of these shapes, with sinks. */
tessera_plan* make_plan(const char* strategy, int ranks);
/* This rank's part of a forward and backward pass: reads its tokens from the whole tensors and writes its tokens of the
 * results there. `strided` puts the local tensors into memory with gaps. */
void run_training_step(tessera_comm* comm, const tessera_plan* plan, int strided, struct tensors* tensors);
/* Results by the definition. */
void run_by_definition(struct tensors* tensors);
/* The largest difference of any result. */
double largest_difference(const struct tensors* a, const struct tensors* b);

#endif
