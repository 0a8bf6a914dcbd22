// Facts about this machine and this process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera::launcher {

int UsableCores();  // in this process's affinity mask
int64_t TotalMemoryBytes();
int64_t AvailableMemoryBytes();
std::string CpuModel();
std::vector<std::string> CpuFeatures();  // the ones attention kernels care about
std::string HostName();

int64_t ResidentBytes();  // of this process, now
// Gives freed memory back to the system and forgets earlier peaks, so that PeakResidentBytes speaks of what follows.
// False where the kernel does not allow it.
bool ResetPeakResident();
int64_t PeakResidentBytes();

// Cores divided by the ranks of this node, at least one: a guess, where ranks cannot be asked (see affinity.h).
int DefaultThreads(int local_ranks);

// Above this rate a result was not computed: cores x 6 GHz x the widest matrix instructions there are per cycle.
double PlausiblePeakFlops(int cores, bool half_precision);

}  // namespace tessera::launcher
