# job.sh - what the batch scripts share: dtrain on all that the job was given, saved in time, gone on with later.
#
# Settings, from the environment you submit in:
#   LAUNCHER      mpirun (the default) or srun, for which `srun --mpi=list` must have pmix, or, for MPICH or Intel MPI,
#                 pmi2: SLURM_MPI_TYPE=pmi2
#   DTRAIN_HOME   the folder dtrain was built in, unless you submit from there
#   OUT           the run's directory, runs/JOBNAME unless given: jobs of one name go on with one run. A script that
#                 sets `net` writes below it
# srun's own (SLURM_MPI_TYPE, ...) and Open MPI's (OMPI_MCA_...) are honoured. What the site needs first, modules
# for instance, load before you submit: the job has your environment.
#
# How a job ends:
#   a time limit or preemption is near    USR1, as --signal asks: saved, then requeued
#   scancel, scontrol requeue             TERM: saved; SLURM knows what becomes of the job
#   a rank or a host is lost              requeued; later, only if the run has come further since the job was started
#   all else                              dtrain's exit code, see README
# Where requeueing is off, the job submits its successor instead.

# shellcheck shell=bash
set -uo pipefail
. "${BASH_SOURCE[0]%/*}/../launch/signals.sh"
unset SLURM_EXPORT_ENV # by `sbatch --export`: srun would leave this environment out too
home=${DTRAIN_HOME:-$SLURM_SUBMIT_DIR}
launcher=${LAUNCHER:-mpirun}
all_ranks=${SLURM_NTASKS:-$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-1}))}
id=$SLURM_JOB_ID
# The last job of an array to start has the array's own number, by which SLURM would take all of them.
[[ $id != "${SLURM_ARRAY_JOB_ID-}" ]] || id+=_$SLURM_ARRAY_TASK_ID
pid='' code=0
warned=''     # USR1 has come: there is little time left
terminated='' # TERM has come, to the ranks as well
signalled=''  # one of them, while the launcher is waited for
net=''
again='' # requeued, or the successor of another
[[ ${SLURM_RESTART_COUNT:-0} == 0 && -z ${DTRAIN_AGAIN-} ]] || again=1

warn() {
    warned=1 signalled=1
    [[ -z $pid ]] || kill -USR1 "$pid" 2>/dev/null
}
trap warn USR1
trap 'terminated=1 signalled=1' TERM

fail() { # MESSAGE
    printf 'job.sh: %s\n' "$1" >&2
    exit 2
}

# dtrain on so many hosts, with so many ranks in all: those of the job unless given.
launch() { # [-hosts N -ranks N] OPTIONS of dtrain...
    local hosts=$SLURM_JOB_NUM_NODES ranks=$all_ranks
    if [[ ${1-} == -hosts ]]; then
        hosts=$2 ranks=$4
        shift 4
    fi
    case $launcher in
    srun)
        # Ranks that save end together; after one that is killed the others have a little time, then end too.
        # The tree: with SLURM 22.05's own choice a rank was seen to crash in MPI_Init on a busy host. With GPUs the
        # ranks are bound to no core, as CUDA's and NCCL's threads would share it.
        SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmix} SLURM_PMIX_FENCE=${SLURM_PMIX_FENCE:-tree} \
            srun --nodes="$hosts" --ntasks="$ranks" --input=none --wait=5 --kill-on-bad-exit=0 \
            ${SLURM_GPUS_ON_NODE:+--cpu-bind=none} \
            "${DTRAIN:-$home/dtrain}" "$@" &
        ;;
    mpirun) "$home/launch/run" -np "$ranks" "$@" & ;;
    *) fail "LAUNCHER=$launcher: give srun or mpirun" ;;
    esac
    pid=$!
    [[ -z $warned ]] || kill -USR1 "$pid"
    signalled=1
    while [[ -n $signalled ]]; do # a signal that is trapped ends bash's wait, not the launcher
        signalled=''
        wait "$pid"
        code=$?
    done
    [[ $launcher != srun ]] || ((code <= 128)) || code=4 # srun gives the signal that ended a rank, and has named it
    pid=''
}

# Changes whenever the run, or one of several nets, has come further.
checkpoints() {
    find -L "$out" -maxdepth 3 -name checkpoint.safetensors -printf '%p %i %C@\n' 2>/dev/null | sort
}

# The same job once more. What you gave to sbatch beside the usual options belongs into the #SBATCH lines.
submit_successor() { # SCRIPT OPTIONS...
    local script=$1 gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE-}} # these of --gres and --gpus, too
    shift
    # shellcheck disable=SC2046 # options without spaces
    DTRAIN_AGAIN=1 DTRAIN_HOME=$home sbatch --dependency="afterany:$id" --job-name="$SLURM_JOB_NAME" --no-requeue \
        --partition="$SLURM_JOB_PARTITION" --time="$(squeue --noheader --job="$id" --format=%l)" \
        --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$all_ranks" \
        ${SLURM_NTASKS_PER_NODE:+--ntasks-per-node="$SLURM_NTASKS_PER_NODE"} \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        ${gpus:+--gpus-per-node="$gpus"} \
        ${SLURM_MEM_PER_NODE:+--mem="$SLURM_MEM_PER_NODE"} \
        ${SLURM_MEM_PER_CPU:+--mem-per-cpu="$SLURM_MEM_PER_CPU"} \
        ${SLURM_ARRAY_TASK_ID:+--array="$SLURM_ARRAY_TASK_ID"} \
        ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} \
        "$home/slurm/$script" "$@" || printf 'job.sh: no successor could be submitted: submit it again to go on\n' >&2
}

go_on_later() { # SCRIPT OPTIONS...
    local job
    until job=$(scontrol show job "$id") || [[ -n $terminated ]]; do
        sleep 10
    done
    if [[ $job == *Requeue=1* ]]; then
        while [[ -z $terminated ]] && ! scontrol requeue "$id"; do
            sleep 10
        done
        sleep 300 # SLURM ends this script
    elif [[ -z $terminated ]]; then
        submit_successor "$@"
    fi
    exit 75
}

seconds() { # since the host has started: bash's SECONDS goes by the wall clock
    local now
    read -r now _ </proc/uptime
    echo "${now%.*}"
}

# A batch script is its #SBATCH lines and this.
train() { # SCRIPT OPTIONS of dtrain...
    local script=$1 before begun i
    shift
    out=${OUT:-runs/$SLURM_JOB_NAME}${net:+/$net}
    for ((i = 1; i <= $#; i++)); do
        [[ ${!i} != --out* ]] || fail "--out: set OUT instead"
    done
    before=$(checkpoints) begun=$(seconds)
    while :; do
        launch --out "$out" --resume "$@"
        # A rank of the run before may hold the directory yet, until it finds itself alone.
        if [[ -z $again || -n $warned$terminated ]] || ((code != 2 || $(seconds) - begun >= 180)); then
            break
        fi
        sleep 5
    done
    [[ -z $terminated ]] || exit "$code"
    case $code in
    0 | 1 | 2 | 3 | 5) exit "$code" ;;
    75) go_on_later "$script" "$@" ;;
    esac
    if [[ $warned || -z $again || $(checkpoints) != "$before" ]]; then
        printf 'job.sh: exit code %s; the run goes on from its last checkpoint\n' "$code" >&2
        go_on_later "$script" "$@"
    fi
    exit "$code"
}
