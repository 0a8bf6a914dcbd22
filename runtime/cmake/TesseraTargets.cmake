# tessera_library(<name> SOURCES ... [PUBLIC libs...] [PRIVATE libs...]) adds one layer of the runtime as a library
# Tessera::<name>. Headers are included from the repository root, as "partition/plan.h".
set_property(GLOBAL PROPERTY TESSERA_LIBRARIES "")

# tessera_precompiled(<target> HEADERS ... LIBS ...) makes an empty program whose headers other targets of its kind reuse
# by tessera_reuse(), where TESSERA_PRECOMPILE asks for it; with LIBRARY, a library.
function(tessera_precompiled target)
  cmake_parse_arguments(ARG "LIBRARY" "" "HEADERS;LIBS" ${ARGN})
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/${target}.cc" CONTENT "int main() {}")
  if(ARG_LIBRARY)
    add_library(${target} OBJECT "${PROJECT_BINARY_DIR}/${target}.cc")
  else()
    add_executable(${target} "${PROJECT_BINARY_DIR}/${target}.cc")
  endif()
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${target} PRIVATE ${ARG_LIBS})
  target_precompile_headers(${target} PRIVATE ${ARG_HEADERS})
endfunction()
function(tessera_reuse precompiled target)
  if(TESSERA_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM ${precompiled})
  endif()
endfunction()
function(tessera_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(target tessera_${name})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(Tessera::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/tessera>)
  target_link_libraries(${target} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  if(NOT name MATCHES "^kernels")  # their files choose instruction sets before they include anything
    tessera_reuse(tessera_library_headers ${target})
  endif()
  set_property(GLOBAL APPEND PROPERTY TESSERA_LIBRARIES ${target})
endfunction()
