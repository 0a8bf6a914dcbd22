// Writing results from all ranks: one safetensors file, and one trace.
#pragma once

#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/run_plan.h"

namespace tessera::launcher {

// Collective. Writes "out" [Sq, Hq, Dv] in the problem's dtype and "lse" [Sq, Hq] fp32; on any error nothing is
// written and an existing file stays. Errors are agreed, unless the communicator failed.
Status WriteResult(Communicator& comm, const PlanSpec& spec, const RunResult& result, const std::string& path);

// Collective. Writes the traces of all ranks as one Chrome trace document, aside and then renamed.
Status WriteTrace(Communicator& comm, const Trace& trace, const std::string& path);

}  // namespace tessera::launcher
