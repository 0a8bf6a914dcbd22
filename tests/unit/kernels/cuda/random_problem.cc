#include "tests/unit/kernels/cuda/random_problem.h"

namespace tessera::testing {
namespace {

int RandomWidth(Random& random) {
  static constexpr int kUsual[] = {32, 64, 80, 96, 128, 256};
  return random.OneIn(2) ? kUsual[random.Integer(0, 5)] : static_cast<int>(random.Integer(1, 256));
}

}  // namespace

void Align(Problem& problem, Random& random) {
  for (Tensor* tensor : {&problem.query, &problem.key, &problem.value}) {
    const TensorView view = tensor->view();
    *tensor = Tensor(problem.dtype, view.rows, view.heads, view.width);
    tensor->FillNormal(random, 1.0f);
  }
}

Problem RandomDeviceProblem(Random& random) {
  Shape shape;
  shape.dtype = random.OneIn(2) ? DType::kBFloat16 : DType::kFloat16;
  shape.query_tokens = random.Integer(1, random.OneIn(3) ? 200 : 40);
  shape.key_tokens = random.OneIn(20) ? 0 : random.Integer(1, 260);
  shape.kv_heads = static_cast<int>(random.Integer(1, 2));
  shape.heads = shape.kv_heads * static_cast<int>(random.Integer(1, 3));
  shape.qk_width = RandomWidth(random);
  shape.v_width = random.OneIn(2) ? shape.qk_width : RandomWidth(random);
  Problem problem = MakeProblem(shape, random);
  if (random.OneIn(2)) Align(problem, random);
  problem.bands = RandomBands(shape.query_tokens, shape.key_tokens, random);
  if (random.OneIn(4)) problem.score.soft_cap = random.Uniform(1.0f, 50.0f);
  if (random.OneIn(4)) {
    for (int head = 0; head < shape.heads; ++head) problem.slopes.push_back(random.Uniform(0.0f, 1.0f));
  }
  if (random.OneIn(4)) {
    for (int head = 0; head < shape.heads; ++head) problem.sinks.push_back(3.0f * random.Normal());
  }
  // Scores up to about 1e4. fp32 knows such a score to 1e-3, which hides in the rounding of bf16 weights but not of
  // fp16.
  if (random.OneIn(8)) problem.score.scale *= shape.dtype == DType::kBFloat16 ? 2500.0f : 50.0f;
  if (random.OneIn(12)) problem.score.scale = -problem.score.scale;
  if (random.OneIn(30)) problem.score.scale = 0.0f;
  return problem;
}

}  // namespace tessera::testing
