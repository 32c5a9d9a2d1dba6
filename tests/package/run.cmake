# Installs nfold into an empty prefix, then configures, builds and runs the
# project in outside/ against that alone.
#
#   cmake -DBUILD=... -DWORK=... -DSOURCE=... -DGENERATOR=... -DCOMPILER=...
#         -P run.cmake
function(run)
  execute_process(COMMAND ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nended with ${result}:\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)

# What belongs to the build must not have come along.
file(GLOB_RECURSE headers RELATIVE ${WORK}/prefix/include
  ${WORK}/prefix/include/*)
foreach(header IN LISTS headers)
  if(NOT header MATCHES "^nfold/[a-z0-9_]+\\.h$")
    message(FATAL_ERROR "expected only nfold/*.h, found ${header} installed")
  endif()
endforeach()
file(GLOB package ${WORK}/prefix/lib*/cmake/nfold/*.cmake
  ${WORK}/prefix/lib*/*/cmake/nfold/*.cmake)
foreach(file IN LISTS package)
  file(READ ${file} text)
  if(text MATCHES "${SOURCE}/(src|include)|PkgConfig::|nlohmann|fmt::")
    message(FATAL_ERROR "${file} refers to nfold's build: ${CMAKE_MATCH_0}")
  endif()
endforeach()

run(${CMAKE_COMMAND} -G ${GENERATOR} -S ${SOURCE}/tests/package/outside
  -B ${WORK}/build -DCMAKE_CXX_COMPILER=${COMPILER}
  -DCMAKE_CXX_FLAGS=${FLAGS} -DCMAKE_BUILD_TYPE=Debug
  -DCMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${CMAKE_COMMAND} -E env
  --unset=RANK --unset=WORLD_SIZE OMP_NUM_THREADS=1 ${WORK}/build/outside)
