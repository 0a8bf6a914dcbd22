// Writing results from all ranks: one safetensors file, and one trace.
#pragma once

#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/run_plan.h"

namespace tessera::launcher {

// A file that a command reads or writes, and the flag that names it. An empty path is none.
struct NamedFile {
  std::string flag;
  std::string path;
};
// InvalidArgument when a file of `written` is also read or written under another flag, by whatever name or link.
Status CheckDistinct(const std::vector<NamedFile>& read, const std::vector<NamedFile>& written);

// Collective. Writes "out" [Sq, Hq, Dv] in the problem's dtype and "lse" [Sq, Hq] fp32; on any error nothing is
// written and an existing file stays. Errors are agreed, unless the communicator failed.
Status WriteResult(Communicator& comm, const PlanSpec& spec, const RunResult& result, const std::string& path);

// Writes `text` to a new file and renames that to `path`: on any error an existing file stays.
Status WriteAside(const std::string& path, const std::string& text);

// Collective. Writes the traces of all ranks as one Chrome trace document, as WriteAside does.
Status WriteTrace(Communicator& comm, const Trace& trace, const std::string& path);

}  // namespace tessera::launcher
