# Installs the build tree BUILD into WORK/prefix, then builds and runs the C consumer against it twice: as a CMake
# project, and with what pkg-config says.
# Usage: cmake -DBUILD=... -DSOURCE=... -DWORK=... -DGENERATOR=... -DCC=... -DFLAGS=... -DPKG_CONFIG=... -DLIBDIR=...
#   -P test.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed (${result}): ${ARGV}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()
file(REMOVE_RECURSE "${WORK}")
run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${WORK}/prefix")

run(${CMAKE_COMMAND} -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}" "-DCMAKE_PREFIX_PATH=${WORK}/prefix"
  "-DCMAKE_C_COMPILER=${CC}" "-DCMAKE_C_FLAGS=${FLAGS}" -DCMAKE_BUILD_TYPE=Debug)
run(${CMAKE_COMMAND} --build "${WORK}/build")
run("${WORK}/build/consumer")
message(STATUS "find_package: ${output}")

if(NOT PKG_CONFIG)
  message(STATUS "[  SKIPPED ] pkg-config is not installed")
  return()
endif()
set(ENV{PKG_CONFIG_PATH} "${WORK}/prefix/${LIBDIR}/pkgconfig")
run("${PKG_CONFIG}" --cflags --libs "tessera >= 0.1")
separate_arguments(package UNIX_COMMAND "${output}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
run("${CC}" -std=c99 ${flags} "${SOURCE}/consumer.c" ${package} -o "${WORK}/pkg_config_consumer")
set(ENV{LD_LIBRARY_PATH} "${WORK}/prefix/${LIBDIR}:$ENV{LD_LIBRARY_PATH}")
run("${WORK}/pkg_config_consumer")
message(STATUS "pkg-config: ${output}")
