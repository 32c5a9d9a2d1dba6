# cmake --install: the libraries of all layers, the public headers, the nfold
# program, and a package for find_package(nfold).
include(CMakePackageConfigHelpers)

set(nfold_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/nfold)

# Everything above the public headers stays out.
get_property(nfold_installed_layers GLOBAL PROPERTY NFOLD_LAYERS)
list(FILTER nfold_installed_layers EXCLUDE REGEX "^nfold_(bench|train|testing)")

# What a user links: nfold::nfold, here and after installation.
add_library(nfold_interface INTERFACE)
add_library(nfold::nfold ALIAS nfold_interface)
set_target_properties(nfold_interface PROPERTIES EXPORT_NAME nfold)
foreach(layer IN LISTS nfold_installed_layers)
  target_link_libraries(nfold_interface INTERFACE ${layer})
endforeach()

install(TARGETS nfold_interface ${nfold_installed_layers}
  EXPORT nfoldTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/nfold
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT nfoldTargets NAMESPACE nfold::
  DESTINATION ${nfold_package_dir})

if(TARGET nfold)
  # The program finds torch's libraries where they were at build time.
  set_target_properties(nfold PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS nfold RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# torch's ABI changes between minor versions, so a user needs the same one.
string(REGEX MATCH "^[0-9]+\\.[0-9]+" NFOLD_TORCH_VERSION "${Torch_VERSION}")
set(NFOLD_TORCH_DIR "${Torch_DIR}")
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/nfoldConfig.cmake.in
  ${PROJECT_BINARY_DIR}/nfoldConfig.cmake
  INSTALL_DESTINATION ${nfold_package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/nfoldConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/nfoldConfig.cmake
  ${PROJECT_BINARY_DIR}/nfoldConfigVersion.cmake
  DESTINATION ${nfold_package_dir})
