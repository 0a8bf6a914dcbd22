# shellcheck shell=bash
# The environment for mpirun with more ranks than cores, or as root in a container. Source it; the tests read it too,
# so every line is a plain `export NAME=value`. Open MPI only; harmless elsewhere.

# Containers run as root.
export OMPI_ALLOW_RUN_AS_ROOT=1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Ranks may outnumber cores; then a waiting rank must give its core away (4 ranks on 2 cores: 1.4 s instead of 82 s).
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1
# Compute threads are placed by the system, not confined to one core.
export OMPI_MCA_hwloc_base_binding_policy=none
# Shared memory within one node. For a cluster, unset these two.
export OMPI_MCA_btl=self,vader
export OMPI_MCA_pml=ob1
