// File: nfold/rank_lists.h
//
// Which ranks form which group, from the size of the world and the degrees of
// parallelism. No groups are made here, so that a layout of any size can be
// looked at and tested on one machine.
//
//   const auto lists = tensor_rank_lists(8, {.tensor = 2});
//   lists.data                     // {0, 2, 4, 6}, {1, 3, 5, 7}
//   lists.tensor                   // {0, 1}, {2, 3}, {4, 5}, {6, 7}
//   source_rank(lists.tensor, 5)   // 4
//
// Making a group is collective, even for ranks outside of it: every rank makes
// every group, in the order of the lists, and the members of a struct from
// first to last. A rank's place in its list is its rank in the group.
//
// Pure functions of their arguments, for any thread. A size below 1 and one
// that does not divide the ranks it should raise c10::ValueError; for the
// latter the text has "<ranks> is not divisible by <size>".
//
// expert_ranks.h has the groups of experts, mics_ranks.h those of MiCS.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

using RankList = std::vector<int>;
using RankLists = std::vector<RankList>;

// {0, 1, ..., world_size - 1}.
RankList all_ranks(int world_size);

// Questions to lists in which each rank is at most once.

// The list that has the rank; c10::ValueError if none has.
RankList rank_list_of(const RankLists& lists, int rank);

// The global rank of rank 0 of the rank's group: where broadcasts come from.
// Right for strided groups too, where rounding the rank down is not.
int source_rank(const RankLists& lists, int rank);

// Mesh: ranks in row-major order, so that the ranks of the last axis are
// neighbours.

struct MeshAxis {
  std::string name;
  int size = 1;
};

// For each axis, in the order given, the lists of ranks that differ only in
// their coordinate on it, by first rank. {{"data", 2}, {"sequence", 2}} on 4
// ranks: {0, 2}, {1, 3} and {0, 1}, {2, 3}. Raises c10::ValueError unless the
// sizes multiply to the size of the world. Source: torch's DeviceMesh, and
// DeepSpeed's data x sequence mesh.
std::vector<RankLists> mesh_rank_lists(int world_size,
                                       const std::vector<MeshAxis>& axes);

// Tensor parallelism: a mesh of data x tensor.

struct TensorDegrees {
  int tensor = 1;
  std::optional<int> data = std::nullopt;  // what the tensor size leaves
};

struct TensorRankLists {
  RankLists data;    // strided: the ranks with the same part of the model
  RankLists tensor;  // neighbours; these are the model groups as well
};

// Raises c10::ValueError unless the tensor size divides the world, and
// data x tensor is the world. Source: Megatron-LM, DeepSpeed's tensor groups.
TensorRankLists tensor_rank_lists(int world_size, const TensorDegrees& degrees);

// As above, but a tensor size beyond the world means the world. Source:
// DeepSpeed's create_model_parallel.
TensorRankLists clamped_tensor_rank_lists(int world_size, int tensor_size);

// Sequence parallelism without a mesh.

struct SequenceRankLists {
  RankLists sequence;       // neighbours
  RankLists sequence_data;  // state is sharded over it: one list, the world
};

// Raises c10::ValueError for a size below 2 and one that does not divide the
// world. Source: DeepSpeed-Ulysses.
SequenceRankLists sequence_rank_lists(int world_size, int sequence_size);

// hpZ: neighbours among the ranks over which state is sharded, all_ranks for
// the world, that hold a second copy of it between them. A size beyond these
// ranks means all of them. Source: ZeRO++.
RankLists secondary_shard_rank_lists(const RankList& ranks,
                                     std::int64_t group_size);

// Neighbours over which optimizer state is sharded, by default the world.
// Source: the parameter-parallel groups of DeepSpeed's first ZeRO.
RankLists parameter_parallel_rank_lists(
    int world_size, std::optional<int> group_size = std::nullopt);

struct NodeRankLists {
  RankLists intra_node;  // ranks of one node, node by node
  RankLists inter_node;  // ranks with the same place in their nodes
};

// The two hops of a quantized gradient reduction; rank r is on node
// r / devices_per_node. Within one node, full or not, there is one list of
// all ranks and no inter-node list. A rank uses intra_node[r / d] and
// inter_node[r % d].
//
// Raises c10::ValueError for several nodes of which the last is not full.
// Source: ZeRO++'s all-to-all groups, where these are local_i and global_j.
NodeRankLists all_to_all_rank_lists(int world_size, int devices_per_node);

// The same for the ranks of one group, ascending; a group of every second rank
// has half of each node. Raises c10::ValueError unless it has equally many
// ranks on each of its nodes.
NodeRankLists all_to_all_rank_lists(const RankList& ranks,
                                    int devices_per_node);

// What the layouts are made of.

// The ranks cut into lists of `size`, in order. `name` says in errors whose
// size it is.
RankLists consecutive_blocks(const RankList& ranks, int size,
                             std::string_view name);

// List i has the i-th rank of every list given, in their order. They must
// have equal lengths.
RankLists columns(const RankLists& lists);

void append(RankLists& to, RankLists lists);

// The ranks cut where the node changes; rank r is on r / devices_per_node.
RankLists parts_by_node(const RankList& ranks, int devices_per_node);

// Raise c10::ValueError that begins with `name`.
void check_size(std::int64_t size, std::string_view name);
void check_divisible(std::int64_t num_ranks, std::int64_t size,
                     std::string_view name);

}  // namespace nfold
