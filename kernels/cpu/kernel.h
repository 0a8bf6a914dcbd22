// The CPU implementations: one AttentionKernel per instruction set compiled in, best first.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace tessera::cpu {

std::vector<const AttentionKernel*> Kernels();

struct InstructionSet;
// A kernel of its own by the given code; for tests of code that no processor here runs as it is.
std::unique_ptr<const AttentionKernel> MakeKernel(const InstructionSet& set, std::string name);

}  // namespace tessera::cpu
