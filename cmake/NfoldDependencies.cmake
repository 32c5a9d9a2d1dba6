# Every outside dependency, each with the line that installs it.

macro(nfold_require package apt_name)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR
      "nfold needs ${package}. Install it with:\n"
      "  sudo apt-get install ${apt_name}\n"
      "or run scripts/setup.sh, which installs everything.")
  endif()
endmacro()

# torch comes from a Python wheel. Without Torch_DIR or CMAKE_PREFIX_PATH, ask
# the project's own virtual environment where it keeps it. find_spec does not
# import torch, which would take seconds.
if(NOT Torch_DIR AND NOT CMAKE_PREFIX_PATH MATCHES "torch")
  find_program(NFOLD_PYTHON NAMES python3 python
    HINTS ${PROJECT_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)
  if(NOT NFOLD_PYTHON)
    find_program(NFOLD_PYTHON NAMES python3 python)
  endif()
  execute_process(
    COMMAND ${NFOLD_PYTHON} -c "import importlib.util, os
print(os.path.dirname(importlib.util.find_spec('torch').origin))"
    OUTPUT_VARIABLE nfold_torch_root OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
  if(nfold_torch_root)
    list(PREPEND CMAKE_PREFIX_PATH "${nfold_torch_root}/share/cmake")
  endif()
endif()
# Torch's package warns of libraries that only static builds have.
set(nfold_message_level "${CMAKE_MESSAGE_LOG_LEVEL}")
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)
find_package(Torch QUIET)
set(CMAKE_MESSAGE_LOG_LEVEL "${nfold_message_level}")
if(NOT Torch_FOUND)
  message(FATAL_ERROR
    "nfold needs libtorch 2.11 to 2.13. Install it with:\n"
    "  pip install torch==2.13.0\n"
    "and configure with -DCMAKE_PREFIX_PATH=$(python -c 'import torch; "
    "print(torch.utils.cmake_prefix_path)'), or run scripts/setup.sh.")
endif()
if(Torch_VERSION VERSION_LESS 2.11 OR Torch_VERSION VERSION_GREATER_EQUAL 2.14)
  message(FATAL_ERROR
    "nfold supports torch 2.11 to 2.13 but found ${Torch_VERSION} in "
    "${Torch_DIR}. Install a supported one: pip install torch==2.13.0")
endif()

find_package(Threads REQUIRED)
nfold_require(nlohmann_json nlohmann-json3-dev 3.11)
nfold_require(CLI11 libcli11-dev 2.1)
nfold_require(fmt libfmt-dev 9)
if(NFOLD_BUILD_TESTS)
  nfold_require(GTest "libgtest-dev libgmock-dev" 1.12)
endif()

find_package(PkgConfig QUIET)
if(NOT PkgConfig_FOUND)
  message(FATAL_ERROR
    "nfold needs pkg-config. Install it with:\n  sudo apt-get install pkg-config")
endif()
macro(nfold_require_pkg target module apt_name)
  pkg_check_modules(${target} QUIET IMPORTED_TARGET ${module})
  if(NOT ${target}_FOUND)
    message(FATAL_ERROR
      "nfold needs ${module}. Install it with:\n"
      "  sudo apt-get install ${apt_name}\n"
      "or run scripts/setup.sh, which installs everything.")
  endif()
endmacro()
nfold_require_pkg(PCRE2 libpcre2-8 libpcre2-dev)
nfold_require_pkg(XXHASH libxxhash libxxhash-dev)

# torch's wheel exports its Gloo process group but not the headers that its
# declaration includes; Debian's libgloo-dev has them. Only headers are used.
find_path(NFOLD_GLOO_INCLUDE gloo/algorithm.h)
if(NOT NFOLD_GLOO_INCLUDE)
  message(FATAL_ERROR
    "nfold needs the gloo headers. Install them with:\n"
    "  sudo apt-get install libgloo-dev")
endif()
