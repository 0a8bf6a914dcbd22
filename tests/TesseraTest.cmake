# tessera_test(<name> SOURCES ... LIBS ... [MPI_RANKS n...] [LABELS ...] [TIMEOUT s] [MAIN target]) builds one GoogleTest
# program and registers it with ctest: once plainly, or once per rank count under mpirun when MPI_RANKS is given.
set(TESSERA_MPI_ENVIRONMENT
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
  OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl=self,vader OMPI_MCA_pml=ob1)
function(tessera_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT;MAIN" "SOURCES;LIBS;MPI_RANKS;LABELS;ARGS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_MAIN)
    set(ARG_MAIN GTest::gtest_main)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} GTest::gtest ${ARG_MAIN})
  if(NOT ARG_MPI_RANKS)
    add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  else()
    foreach(ranks ${ARG_MPI_RANKS})
      set(test ${name}_mpi${ranks})
      add_test(NAME ${test} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} $<TARGET_FILE:${name}> ${ARG_ARGS})
      set_tests_properties(${test} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS};mpi;ranks${ranks}"
        ENVIRONMENT "${TESSERA_MPI_ENVIRONMENT}" PROCESSORS 2)
    endforeach()
  endif()
endfunction()
