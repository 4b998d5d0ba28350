#!/bin/bash
# One run over any number of time limits: saves before each, queues itself again, and continues where it stopped.
#     sbatch configs/accelerate/slurm_requeue.sh configs/kl_f8_c4.yaml [a.b=value ...]
#
# srun starts the processes itself, one per GPU. With a launcher in between, SIGUSR1 would kill the launcher, a save
# would have 30 s, and every exit code would be 1. As it is, the trainer's own code comes back:
#     0    done
#     85   saved after a signal (train/preempt.py): queued again here
#     2    a mistake in the recipe or the data: not queued again; the log and RUN/status.json say which
#     else a crash: not queued again; the reason is in RUN/status.json
# scancel ends this script together with the trainer, so that a cancelled job stays cancelled. A job that SLURM
# preempts, or whose node fails, is queued again by SLURM itself, and goes on from its last checkpoint.
# `output` of the recipe must be a folder that all nodes see.
#SBATCH --job-name=ldm_vae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
# --signal: to all processes of srun, 300 s before the limit, time for a step and a save (without B:, which is for this
# script alone). --open-mode: one log over all restarts.

set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one node do not meet
WORLD_SIZE=$SLURM_NTASKS
export MASTER_ADDR MASTER_PORT WORLD_SIZE

# --wait: after the first process has ended, the others have 120 s to do so. --kill-on-bad-exit would take 85 for bad,
# and kill rank 0 while it still writes.
# shellcheck disable=SC2016  # the ranks are those of the tasks
srun --kill-on-bad-exit=0 --wait=120 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python -m train "$@"' train "$@"
code=$?

if [ "$code" -eq 85 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
