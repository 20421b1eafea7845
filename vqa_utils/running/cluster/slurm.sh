#!/usr/bin/env bash
# A run on two nodes of a Slurm cluster, each with the GPUs of one fold:
#   sbatch vqa_utils/running/cluster/slurm.sh --preset safe --data DIR
#SBATCH --job-name=vqa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

cd "$SLURM_SUBMIT_DIR" # the repository, on storage that all nodes share
port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_USAGE_STATS_ENABLED=0

start() { # NODES NAMES OPTIONS: Ray on these nodes, until the job ends
    srun --nodes="$1" --ntasks="$1" --nodelist="$2" ray start --block --disable-usage-stats "${@:3}" &
}
start 1 "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false
others=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2 | paste -sd, -)
if [ -n "$others" ]; then
    sleep 20 # until the head answers
    start "$((SLURM_JOB_NUM_NODES - 1))" "$others" --address="$address:$port"
fi
sleep 20 # until all have joined

# In the background: bash passes the signal on at once, and waits again while the run saves
python run_all.py --run-id "slurm-$SLURM_JOB_ID" --executor ray --address "$address:$port" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run" || wait "$run"
