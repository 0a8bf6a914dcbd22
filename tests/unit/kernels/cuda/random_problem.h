// Random problems in the dtypes that CUDA serves.
#pragma once

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

// Every dimension, mask and score option at random.
Problem RandomDeviceProblem(Random& random);

// New tensors of the same shapes, dense: rows that kernels copy in the background where the width allows it.
void Align(Problem& problem, Random& random);

}  // namespace tessera::testing
