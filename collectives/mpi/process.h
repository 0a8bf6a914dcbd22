// What the MPI worlds of this process share with its session: MPI is one per process, so this is too.
#pragma once

#include <memory>
#include <string>

#include "collectives/liveness.h"

namespace tessera::internal {

void RegisterWorld(std::weak_ptr<const Liveness> liveness);
// What is known to be wrong: peers that are gone, otherwise the verdict of a world; empty when nothing is.
std::string DescribeTrouble();

// An abandoned process has messages pending that will never complete, so freeing communicators or finalizing MPI could
// hang; it must end without.
void AbandonMpi();
bool MpiIsAbandoned();

}  // namespace tessera::internal
