// Prints the GPU section of `tessera doctor` and its number of findings.
#include <cstdio>

#include "launcher/gpus.h"

int main() {
  std::printf("%d findings\n", tessera::launcher::PrintGpus(1));
  return 0;
}
