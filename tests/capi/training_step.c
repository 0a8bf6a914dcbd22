#include "training_step.h"

#include <math.h>

#include "check.h"

void fill_inputs(struct tensors* t) {
  unsigned state = 12345;
  struct {
    float* data;
    size_t count;
  } inputs[] = {{t->query, sizeof t->query / sizeof(float)},
                {t->key, sizeof t->key / sizeof(float)},
                {t->value, sizeof t->value / sizeof(float)},
                {t->output_gradient, sizeof t->output_gradient / sizeof(float)},
                {t->sinks, kQueryHeads}};
  memset(t, 0, sizeof *t);
  for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; ++i) {
    for (size_t j = 0; j < inputs[i].count; ++j) {
      state = state * 1664525u + 1013904223u;
      inputs[i].data[j] = (float)(state >> 8) / (float)(1 << 23) - 1.0f;
    }
  }
}

tessera_plan* make_plan(const char* strategy, int ranks) {
  tessera_mask mask = TESSERA_INIT(tessera_mask);
  tessera_problem problem = TESSERA_INIT(tessera_problem);
  tessera_plan_options options = TESSERA_INIT(tessera_plan_options);
  tessera_plan* plan = NULL;
  mask.kind = TESSERA_MASK_CAUSAL;
  problem.dtype = TESSERA_FLOAT32;
  problem.query_tokens = problem.key_tokens = kTokens;
  problem.query_heads = kQueryHeads;
  problem.kv_heads = kKvHeads;
  problem.qk_width = kQkWidth;
  problem.v_width = kVWidth;
  problem.sink = 1;
  problem.mask = &mask;
  options.strategy = strategy;
  options.ranks = ranks;
  CHECK_OK(tessera_plan_create(&problem, &options, &plan));
  return plan;
}

/* A local tensor: rows of the whole one, in memory of its own. */
struct local {
  tessera_tensor tensor;
  float* memory;
  int64_t elements;
};

static struct local make_local(int64_t rows, int heads, int width, int strided) {
  struct local local;
  memset(&local, 0, sizeof local);
  const int64_t head_stride = strided ? width + 3 : width;
  const int64_t row_stride = heads * head_stride + (strided ? 5 : 0);
  local.elements = rows * row_stride;
  local.memory = malloc((size_t)(local.elements + 1) * sizeof(float));
  CHECK(local.memory != NULL);
  for (int64_t i = 0; i <= local.elements; ++i) local.memory[i] = NAN; /* gaps must not be read */
  local.tensor.data = local.memory;
  local.tensor.dtype = TESSERA_FLOAT32;
  local.tensor.shape[0] = rows;
  local.tensor.shape[1] = heads;
  local.tensor.shape[2] = width;
  if (strided) {
    local.tensor.strides[0] = row_stride;
    local.tensor.strides[1] = head_stride;
    local.tensor.strides[2] = 1;
  }
  return local;
}

/* Copies between the rows of a whole tensor that `tokens` names and a local tensor; afterwards gaps must be untouched.
 */
static void copy_rows(float* whole, struct local* local, const int64_t* tokens, int to_local) {
  const int64_t heads = local->tensor.shape[1], width = local->tensor.shape[2];
  const int strided = local->tensor.strides[2] != 0;
  const int64_t head_stride = strided ? local->tensor.strides[1] : width;
  const int64_t row_stride = strided ? local->tensor.strides[0] : heads * width;
  for (int64_t row = 0; row < local->tensor.shape[0]; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      float* const a = whole + (tokens[row] * heads + head) * width;
      float* const b = local->memory + row * row_stride + head * head_stride;
      memcpy(to_local ? b : a, to_local ? a : b, (size_t)width * sizeof(float));
      if (strided) CHECK(isnan(b[width]));
    }
  }
  CHECK(isnan(local->memory[local->elements]));
}

void run_training_step(tessera_comm* comm, const tessera_plan* plan, int strided, struct tensors* t) {
  int rank = -1;
  int64_t query_rows = 0, key_rows = 0, query_tokens[kTokens], key_tokens[kTokens];
  CHECK_OK(tessera_comm_rank(comm, &rank));
  CHECK_OK(tessera_plan_local_rows(plan, rank, &query_rows, &key_rows));
  CHECK_OK(tessera_plan_local_tokens(plan, rank, TESSERA_QUERIES, query_tokens, kTokens));
  CHECK_OK(tessera_plan_local_tokens(plan, rank, TESSERA_KEYS, key_tokens, kTokens));

  struct local query = make_local(query_rows, kQueryHeads, kQkWidth, strided);
  struct local key = make_local(key_rows, kKvHeads, kQkWidth, strided);
  struct local value = make_local(key_rows, kKvHeads, kVWidth, strided);
  struct local output = make_local(query_rows, kQueryHeads, kVWidth, strided);
  struct local lse = make_local(query_rows, kQueryHeads, 1, strided);
  struct local output_gradient = make_local(query_rows, kQueryHeads, kVWidth, strided);
  struct local query_gradient = make_local(query_rows, kQueryHeads, kQkWidth, strided);
  struct local key_gradient = make_local(key_rows, kKvHeads, kQkWidth, strided);
  struct local value_gradient = make_local(key_rows, kKvHeads, kVWidth, strided);
  float sink_gradient[kQueryHeads];
  copy_rows(t->query, &query, query_tokens, 1);
  copy_rows(t->key, &key, key_tokens, 1);
  copy_rows(t->value, &value, key_tokens, 1);
  copy_rows(t->output_gradient, &output_gradient, query_tokens, 1);

  tessera_attention_options options = TESSERA_INIT(tessera_attention_options);
  tessera_attention* attention = NULL;
  options.backward = 1;
  CHECK_OK(tessera_attention_create(comm, plan, &options, &attention));

  tessera_forward_args forward = TESSERA_INIT(tessera_forward_args);
  forward.query = &query.tensor;
  forward.key = &key.tensor;
  forward.value = &value.tensor;
  forward.output = &output.tensor;
  forward.lse = &lse.tensor;
  forward.sinks = t->sinks;
  CHECK_OK(tessera_attention_forward(attention, &forward));

  tessera_backward_args backward = TESSERA_INIT(tessera_backward_args);
  backward.query = &query.tensor;
  backward.key = &key.tensor;
  backward.value = &value.tensor;
  backward.output = &output.tensor;
  backward.lse = &lse.tensor;
  backward.output_gradient = &output_gradient.tensor;
  backward.query_gradient = &query_gradient.tensor;
  backward.key_gradient = &key_gradient.tensor;
  backward.value_gradient = &value_gradient.tensor;
  backward.sinks = t->sinks;
  backward.sink_gradient = sink_gradient;
  CHECK_OK(tessera_attention_start_backward(attention, &backward)); /* the asynchronous form */
  CHECK_OK(tessera_attention_wait(attention));

  tessera_stats stats = TESSERA_INIT(tessera_stats);
  CHECK_OK(tessera_attention_stats(attention, &stats));
  CHECK(stats.seconds > 0 && tessera_attention_kernel(attention)[0] != '\0');
  tessera_attention_destroy(attention);

  copy_rows(t->output, &output, query_tokens, 0);
  copy_rows(t->lse, &lse, query_tokens, 0);
  copy_rows(t->query_gradient, &query_gradient, query_tokens, 0);
  copy_rows(t->key_gradient, &key_gradient, key_tokens, 0);
  copy_rows(t->value_gradient, &value_gradient, key_tokens, 0);
  if (rank == 0) memcpy(t->sink_gradient, sink_gradient, sizeof sink_gradient); /* equal on all ranks */
  float* const memory[] = {query.memory,          key.memory,          value.memory,
                           output.memory,         lse.memory,          output_gradient.memory,
                           query_gradient.memory, key_gradient.memory, value_gradient.memory};
  for (size_t i = 0; i < sizeof memory / sizeof memory[0]; ++i) free(memory[i]);
}

void run_by_definition(struct tensors* t) {
  enum { kGroup = kQueryHeads / kKvHeads };
  static double dk[kTokens * kKvHeads * kQkWidth], dv[kTokens * kKvHeads * kVWidth];
  const double scale = 1 / sqrt(kQkWidth);
  memset(dk, 0, sizeof dk);
  memset(dv, 0, sizeof dv);
  for (int h = 0; h < kQueryHeads; ++h) {
    double sink_gradient = 0;
    for (int q = 0; q < kTokens; ++q) {
      const float* const query = t->query + (q * kQueryHeads + h) * kQkWidth;
      const float* const dout = t->output_gradient + (q * kQueryHeads + h) * kVWidth;
      double weights[kTokens], output[kVWidth] = {0}, dq[kQkWidth] = {0}, delta = 0, sum = exp((double)t->sinks[h]);
      for (int k = 0; k <= q; ++k) {
        const float* const key = t->key + (k * kKvHeads + h / kGroup) * kQkWidth;
        double score = 0;
        for (int d = 0; d < kQkWidth; ++d) score += (double)query[d] * key[d];
        weights[k] = exp(score * scale);
        sum += weights[k];
      }
      for (int k = 0; k <= q; ++k) {
        const float* const value = t->value + (k * kKvHeads + h / kGroup) * kVWidth;
        weights[k] /= sum;
        for (int d = 0; d < kVWidth; ++d) output[d] += weights[k] * value[d];
      }
      for (int d = 0; d < kVWidth; ++d) {
        t->output[(q * kQueryHeads + h) * kVWidth + d] = (float)output[d];
        delta += output[d] * dout[d];
      }
      t->lse[q * kQueryHeads + h] = (float)log(sum);
      sink_gradient -= exp((double)t->sinks[h]) / sum * delta;
      for (int k = 0; k <= q; ++k) {
        const int row = k * kKvHeads + h / kGroup;
        double change = 0;
        for (int d = 0; d < kVWidth; ++d) {
          change += (double)dout[d] * t->value[row * kVWidth + d];
          dv[row * kVWidth + d] += weights[k] * dout[d];
        }
        change = weights[k] * (change - delta) * scale;
        for (int d = 0; d < kQkWidth; ++d) {
          dq[d] += change * t->key[row * kQkWidth + d];
          dk[row * kQkWidth + d] += change * query[d];
        }
      }
      for (int d = 0; d < kQkWidth; ++d) t->query_gradient[(q * kQueryHeads + h) * kQkWidth + d] = (float)dq[d];
    }
    t->sink_gradient[h] = (float)sink_gradient;
  }
  for (size_t i = 0; i < sizeof dk / sizeof dk[0]; ++i) t->key_gradient[i] = (float)dk[i];
  for (size_t i = 0; i < sizeof dv / sizeof dv[0]; ++i) t->value_gradient[i] = (float)dv[i];
}

double largest_difference(const struct tensors* a, const struct tensors* b) {
  const float* const x = (const float*)(const void*)a;
  const float* const y = (const float*)(const void*)b;
  double largest = 0;
  for (size_t i = 0; i < sizeof *a / sizeof(float); ++i) {
    const double difference = fabs((double)x[i] - y[i]);
    if (!(difference <= largest)) largest = difference; /* NaN too */
  }
  return largest;
}
