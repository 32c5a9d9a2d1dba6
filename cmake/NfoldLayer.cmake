# One library per layer folder.
#
#   nfold_layer(grad
#     SOURCES grad_bucket.cc grad_reducer.cc
#     DEPENDS param                      # layers below, never sideways
#     LIBRARIES PkgConfig::PCRE2)        # outside libraries; below train only
#                                        # such that are headers alone, since
#                                        # an installed layer must link alone
#
#   nfold_test(grad_bucket_test
#     SOURCES grad_bucket_test.cc
#     DEPENDS grad testing)
#
# Tests stand beside their sources and run as one ctest entry per binary.

add_library(nfold_pch STATIC ${PROJECT_SOURCE_DIR}/cmake/pch.cc)
target_link_libraries(nfold_pch PUBLIC nfold_compiler torch)
target_precompile_headers(nfold_pch PRIVATE ${PROJECT_SOURCE_DIR}/cmake/pch.h)

function(nfold_apply_common target)
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_precompile_headers(${target} REUSE_FROM nfold_pch)
endfunction()

function(nfold_layer name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;LIBRARIES" ${ARGN})
  set_property(GLOBAL APPEND PROPERTY NFOLD_LAYERS nfold_${name})
  if(NOT arg_SOURCES)
    add_library(nfold_${name} INTERFACE)
    set_target_properties(nfold_${name} PROPERTIES EXPORT_NAME ${name})
    foreach(lower IN LISTS arg_DEPENDS)
      target_link_libraries(nfold_${name} INTERFACE nfold_${lower})
    endforeach()
    return()
  endif()
  add_library(nfold_${name} STATIC ${arg_SOURCES})
  set_target_properties(nfold_${name} PROPERTIES EXPORT_NAME ${name})
  nfold_apply_common(nfold_${name})
  target_compile_features(nfold_${name} PUBLIC cxx_std_20)
  target_link_libraries(nfold_${name}
    PUBLIC torch $<BUILD_INTERFACE:nfold_compiler>)
  foreach(lower IN LISTS arg_DEPENDS)
    target_link_libraries(nfold_${name} PUBLIC nfold_${lower})
  endforeach()
  target_link_libraries(nfold_${name} PRIVATE
    $<BUILD_INTERFACE:fmt::fmt-header-only>
    $<BUILD_INTERFACE:nlohmann_json::nlohmann_json>)
  foreach(library IN LISTS arg_LIBRARIES)
    target_link_libraries(nfold_${name} PRIVATE
      $<BUILD_INTERFACE:${library}>)
  endforeach()
endfunction()

function(nfold_test name)
  if(NOT NFOLD_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPENDS;LIBRARIES" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_executable(${name} ${arg_SOURCES})
  nfold_apply_common(${name})
  foreach(lower IN LISTS arg_DEPENDS)
    target_link_libraries(${name} PRIVATE nfold_${lower})
  endforeach()
  target_link_libraries(${name} PRIVATE
    nfold_compiler torch ${arg_LIBRARIES}
    fmt::fmt-header-only
    nlohmann_json::nlohmann_json
    GTest::gmock GTest::gtest GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "OMP_NUM_THREADS=1")
endfunction()

# The tests of a binary once more, with an environment variable set.
#   nfold_test_variant(collectives_gloo_test OF collectives_test
#                      ENVIRONMENT NFOLD_TRANSPORT=gloo)
function(nfold_test_variant name)
  cmake_parse_arguments(arg "" "OF" "ENVIRONMENT" ${ARGN})
  if(NOT NFOLD_BUILD_TESTS)
    return()
  endif()
  add_test(NAME ${name} COMMAND ${arg_OF})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300
    ENVIRONMENT "OMP_NUM_THREADS=1;${arg_ENVIRONMENT}")
endfunction()
