# cmake --install: libraries, public headers, and a package for find_package.
