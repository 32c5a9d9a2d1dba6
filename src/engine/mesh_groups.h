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

// The ranks that train the same layers, or the same parts of layers.
Group& state_group(const Mesh& mesh);
int sequence_parallel_size(const Mesh& mesh);
std::vector<Group*> groups_of(const Mesh& mesh);

// The same as a function of the placement; `mesh` must outlive it.
GroupsOf groups_on(const Mesh& mesh);

}  // namespace nfold
