#!/bin/bash
# One run on machines that come and go: 1 to 4 of them, the same line on each.
#     HEAD=10.0.0.1 configs/accelerate/torchrun_elastic.sh configs/kl_f8_c4.yaml [a.b=value ...]
#
# HEAD   a machine that stays, as host or host:port; it hosts the meeting point (default: this one; port 29400)
# JOB    a name for the run, the same on all (default: ldm_vae)
# NPROC  processes per machine (default: one per GPU)
# A start takes 30 s longer than usual, in which torchrun waits for more machines.
# When a worker or a machine dies, or a machine joins, torchrun starts all workers anew, as many as there are then, and
# they go on from the last checkpoint: no sample of the epoch is repeated or missed. data.batch of the recipe must be
# divisible by optimizer.accumulation x processes for each number of machines that may come about.
#
# torchrun itself ends with 0 when the run is done and with 1 in any other case: RUN/status.json says which. A worker
# that ends with 85 (saved after a signal of its own) or 2 (a mistake in the recipe) has failed in its eyes, and is
# started again up to --max-restarts times. A signal to torchrun is passed on to its workers, which have 30 s to save.
set -u
# Without this, torchrun keeps one store for all starts. Restarted workers find the addresses of dead ones in it, and wait
# for them: https://github.com/pytorch/pytorch/issues/135712
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes=1:4 \
    --nproc-per-node="${NPROC:-gpu}" \
    --max-restarts=3 \
    --rdzv-backend=c10d \
    --rdzv-endpoint="${HEAD:-localhost}" \
    --rdzv-id="${JOB:-ldm_vae}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m train "$@"
