# Compiler settings shared by every target: warnings, sanitizers, ccache.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(NFOLD_CCACHE ccache)
if(NFOLD_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Without this sloppiness ccache refuses every file that uses a
  # precompiled header, which here is every file.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${NFOLD_CCACHE})
endif()

add_library(nfold_compiler INTERFACE)
# -fPIC for executables too (CMake would choose -fPIE): a precompiled header
# serves only files with the same setting.
target_compile_options(nfold_compiler INTERFACE -fPIC
  -Wall -Wextra -Wno-unused-parameter -fopenmp -fpch-preprocess)
# Floating-point contraction would make the result of a loop depend on how
# the compiler vectorised it; kernels ask for fused operations by name.
target_compile_options(nfold_compiler INTERFACE -ffp-contract=off)
target_link_options(nfold_compiler INTERFACE -fopenmp)

if(NFOLD_SANITIZE)
  string(REPLACE ";" "," nfold_sanitizers "${NFOLD_SANITIZE}")
  target_compile_options(nfold_compiler INTERFACE
    -fsanitize=${nfold_sanitizers} -fno-omit-frame-pointer -g1)
  target_link_options(nfold_compiler INTERFACE
    -fsanitize=${nfold_sanitizers})
endif()
