#!/bin/bash
# rlinf on SLURM: a Ray head on the first node, a Ray node on each other, the run on the first.
#   sbatch --nodes=3 examples/cluster/slurm.sh --config examples/cluster/run.yaml runner.max_steps=200
# SLURM sends TERM to this script two minutes before the end of the allocation (or at preemption). The run then
# writes a checkpoint and exits with 75, and the job puts itself back into the queue.
#SBATCH --job-name=rlinf
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

port=${RAY_PORT:-6379}
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.rlinf-$SLURM_JOB_ID.token"
(umask 077; python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

# One `ray start --block` per node; the label fixes the node's rank, the last part says what it is for.
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --block --node-ip-address="$address" --port="$port" \
    --include-dashboard=false --labels="rlinf-node-rank=0,kind=train" &
for i in "${!nodes[@]}"; do
    [ "$i" -gt 0 ] || continue
    srun --nodes=1 --ntasks=1 -w "${nodes[$i]}" ray start --block --address="$address:$port" \
        --labels="rlinf-node-rank=$i,kind=sim" &
done

until rlinf doctor --address "$address:$port" --json > /dev/null 2>&1 || [ $? -eq 1 ]; do sleep 2; done
resume=false
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && resume=true
rlinf train "$@" cluster.address="$address:$port" cluster.num_nodes="$SLURM_JOB_NUM_NODES" \
    runner.resume=$resume &
run=$!
trap 'kill -TERM $run' TERM
status=0
wait $run || status=$?
# A signal ends the first `wait`; the second one waits for the checkpoint.
[ $status -gt 128 ] && { status=0; wait $run || status=$?; }
[ $status -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit $status
