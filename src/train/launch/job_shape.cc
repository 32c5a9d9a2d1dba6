#include "train/launch/job_shape.h"

#include <algorithm>

#include "nfold/errors.h"

namespace nfold::train {

int JobShape::rank_of(int local_rank) const {
  return std::max(host_number, 0) * ranks_per_host + local_rank;
}

void check(const JobShape& shape) {
  TORCH_CHECK_VALUE(shape.ranks_per_host >= 1, "the number of ranks is ",
                    shape.ranks_per_host, "; expected at least 1");
  TORCH_CHECK_VALUE(shape.num_hosts >= 1, "--nnodes is ", shape.num_hosts,
                    "; expected at least 1");
  TORCH_CHECK_VALUE(
      shape.host_number < shape.num_hosts, "--node-rank ", shape.host_number,
      " with --nnodes ", shape.num_hosts, "; expected ",
      shape.num_hosts == 1 ? std::string("0, or --nnodes N for several hosts")
                           : "0 to " + std::to_string(shape.num_hosts - 1));
  if (shape.num_hosts == 1) return;
  TORCH_CHECK_VALUE(shape.host_number >= 0, "--nnodes ", shape.num_hosts,
                    " without --node-rank: give each host its number, 0 to ",
                    shape.num_hosts - 1);
  TORCH_CHECK_VALUE(!shape.master_addr.empty(), "--nnodes ", shape.num_hosts,
                    " without --master-addr: name the host that has "
                    "--node-rank 0, the same on every host");
}

std::map<std::string, std::string> variables_of(const JobShape& shape,
                                                int local_rank) {
  return {
      {"RANK", std::to_string(shape.rank_of(local_rank))},
      {"LOCAL_RANK", std::to_string(local_rank)},
      {"WORLD_SIZE", std::to_string(shape.num_ranks())},
      {"LOCAL_WORLD_SIZE", std::to_string(shape.ranks_per_host)},
      {"GROUP_RANK", std::to_string(std::max(shape.host_number, 0))},
      {"GROUP_WORLD_SIZE", std::to_string(shape.num_hosts)},
      {"MASTER_ADDR",
       shape.master_addr.empty() ? "127.0.0.1" : shape.master_addr},
      {"MASTER_PORT", std::to_string(shape.master_port)},
  };
}

}  // namespace nfold::train
