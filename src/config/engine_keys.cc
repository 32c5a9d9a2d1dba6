#include "config/config_key.h"

namespace nfold {

std::vector<ConfigKey> engine_keys() {
  using enum KeyStatus;
  const JsonRange positive{.least = 1};
  const JsonRange not_negative{.least = 0};
  return {
      {NFOLD_KEY(train_batch_size), kHonoured,
       "samples per optimizer step over all ranks; see Batch sizes", positive},
      {NFOLD_KEY(train_micro_batch_size_per_gpu), kHonoured,
       "samples per rank in one forward and backward; see Batch sizes",
       positive},
      {NFOLD_KEY(gradient_accumulation_steps), kHonoured,
       "micro steps per optimizer step; see Batch sizes", positive},
      {NFOLD_KEY(gradient_clipping), kHonoured,
       "greatest global L2 norm of the gradients, which are scaled down to it; "
       "0 turns clipping off",
       not_negative},
      {NFOLD_KEY(prescale_gradients), kHonoured,
       "divide gradients before they are summed over the ranks instead of "
       "after; at every stage"},
      {NFOLD_KEY(gradient_predivide_factor),
       kHonoured,
       "divide gradients by this before the sum over the ranks and by ranks / "
       "factor after it, at every stage; no effect with prescale_gradients",
       {.least = 0, .least_is_open = true}},
      {NFOLD_KEY(gradient_allreduce_op), kHonoured,
       "mean over the ranks, or the plain sum"},
      {NFOLD_KEY(communication_data_type), kHonoured,
       "dtype in which gradients travel; unset means the parameters' dtype"},
      {NFOLD_KEY(managed_gradient_accumulation), kHonoured,
       "true: the engine counts micro steps and updates at the boundary; "
       "false: every call of step() updates"},
      {NFOLD_KEY(zero_allow_untested_optimizer), kSubsumed,
       "any element-wise torch::optim optimizer may be passed to the engine"},
      {NFOLD_KEY(zero_force_ds_cpu_optimizer), kSubsumed,
       "there is one set of CPU loops, used by every optimizer of this table"},
      {NFOLD_KEY(disable_allgather), kIgnored,
       "updated parameters always reach every rank"},
      {NFOLD_KEY(data_parallel_size), kHonoured,
       "ranks over which a batch is split; unset means what the sequence and "
       "tensor sizes leave of the ranks",
       positive},
      {NFOLD_KEY(sequence_parallel_size), kHonoured,
       "ranks that share a sequence: neighbours, or apart by the tensor size",
       positive},
      {NFOLD_KEY(tensor_parallel_size), kHonoured,
       "nfold's own: neighbouring ranks over which layers are split", positive},
      {NFOLD_KEY(expert_parallel_size), kHonoured,
       "nfold's own: ranks that share out the experts of a mixture; divides "
       "data x sequence",
       positive},
      {NFOLD_KEY(use_data_before_expert_parallelism), kHonoured,
       "true: neighbours hold the same experts; false: neighbours share them "
       "out"},
      {NFOLD_KEY(seq_parallel_communication_data_type), kHonoured,
       "dtype in which gradients travel if sequence_parallel_size is above 1, "
       "in place of communication_data_type"},
      {NFOLD_KEY(steps_per_print), kHonoured,
       "log a line of metrics every so many steps", positive},
      {NFOLD_KEY(wall_clock_breakdown), kHonoured,
       "time forward, backward, communication and update, and write a Chrome "
       "trace per rank"},
      {NFOLD_KEY(cache_host_memory), kHonoured,
       "nfold's own: keep the memory of freed CPU tensors for the next ones, "
       "in huge pages where permitted, up to what was in use at once; for the "
       "whole process"},
      {NFOLD_KEY(memory_breakdown), kSubsumed,
       "every step report holds the bytes by kind"},
      {NFOLD_KEY(dump_state), kSubsumed,
       "the effective configuration is always saved in the run directory"},
      {NFOLD_KEY(dataloader_drop_last), kSubsumed,
       "the trainer only makes whole batches; a program of your own brings its "
       "own loader"},

      {NFOLD_KEY(fp16.enabled), kHonoured,
       "parameters and activations in fp16, with fp32 master weights and loss "
       "scaling"},
      {NFOLD_KEY(fp16.auto_cast), kIgnored,
       "inputs are not converted; give the model what it expects"},
      {NFOLD_KEY(fp16.loss_scale), kHonoured,
       "constant loss scale; 0 means dynamic", not_negative},
      {NFOLD_KEY(fp16.initial_scale_power), kHonoured,
       "the dynamic loss scale starts at 2 to this power", not_negative},
      {NFOLD_KEY(fp16.loss_scale_window), kHonoured,
       "steps without overflow after which the loss scale doubles"},
      {NFOLD_KEY(fp16.hysteresis), kHonoured,
       "overflows after which the loss scale halves", positive},
      {NFOLD_KEY(fp16.consecutive_hysteresis), kHonoured,
       "count only overflows that follow each other directly"},
      {NFOLD_KEY(fp16.min_loss_scale), kHonoured,
       "an overflow at this loss scale is an error"},
      {NFOLD_KEY(fp16.fp16_master_weights_and_grads), kHonoured,
       "keep master weights in fp16; gradients stay in grad_accum_dtype"},
      {NFOLD_KEY(bf16.enabled), kHonoured,
       "parameters and activations in bf16, with fp32 master weights"},
      {NFOLD_KEY(bf16.immediate_grad_update), kSubsumed,
       "gradients are always added to their bucket as soon as they exist"},
      {NFOLD_KEY(bf16.check_grad_overflow), kHonoured,
       "skip a step whose gradients are not finite"},
      {NFOLD_KEY(bf16.bf16_master_weights_and_grads), kHonoured,
       "keep master weights and gradient shards in bf16"},
      {NFOLD_KEY(bf16.bf16_optimizer_states), kHonoured,
       "keep optimizer state in bf16"},
      {NFOLD_KEY(data_types.grad_accum_dtype), kHonoured,
       "dtype in which micro steps add gradients up; unset means fp32, where "
       "DeepSpeed takes the parameters' dtype"},
      {NFOLD_KEY(data_types.param_dtype), kHonoured,
       "must agree with fp16 and bf16, which choose it"},
      {NFOLD_KEY(data_types.buffer_dtype), kHonoured,
       "dtype of floating-point buffers; unset means the parameters' dtype "
       "with "
       "fp16 or bf16, else leaves them as they are"},
  };
}

}  // namespace nfold
