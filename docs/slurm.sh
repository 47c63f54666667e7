#!/bin/bash
#SBATCH --job-name=autobert-zero
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue

# The search stops gracefully two minutes before the time limit; the job is requeued and resumes it.
trap 'kill -TERM $(jobs -p); wait; scontrol requeue "$SLURM_JOB_ID"' TERM

export MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# In single quotes: each node substitutes its own rank.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c 'accelerate launch \
    --multi_gpu \
    --num_machines "$SLURM_NNODES" \
    --num_processes $((SLURM_NNODES * 8)) \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_NODE" \
    --main_process_port 29500 \
    -m autobert_zero.search --train_file text.txt --output_dir runs/mine' &
wait $!  # with its exit code
