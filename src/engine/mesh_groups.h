// File: mesh_groups.h
//
// Which groups of a mesh a parameter has to do with, from where its module
// places it.
#pragma once

#include "nfold/mesh.h"
#include "param/unit_groups.h"

namespace nfold {

// Raises c10::ValueError, with the groups there are, if the mesh has none for
// the placement.
UnitGroups groups_on(const Mesh& mesh, const Placement& placement);

// The same as a function of the placement; `mesh` must outlive it.
GroupsOf groups_on(const Mesh& mesh);

}  // namespace nfold
