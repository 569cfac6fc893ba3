# launcher.sh - the launchers of MPI that launch/run knows, and what each of them needs; sourced by run and variants,
# whose `fail` it calls.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # much of it is used where it is sourced

# Settings from the environment, which the user's own win over. When: always, as root, on this machine alone, there
# without ssh, with a full /dev/shm, where ranks share cores, where they are bound to none, and where the network
# between the hosts is given.
launcher_settings='
root     open-mpi-*  OMPI_ALLOW_RUN_AS_ROOT=1
root     open-mpi-*  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# A host that is gone is noticed in seconds, not minutes.
always   open-mpi-4  OMPI_MCA_oob_tcp_keepalive_time=4
always   open-mpi-4  OMPI_MCA_oob_tcp_keepalive_intvl=1
always   open-mpi-4  OMPI_MCA_oob_tcp_keepalive_probes=6
always   open-mpi-5  PRTE_MCA_oob_tcp_keepalive_time=4
always   open-mpi-5  PRTE_MCA_oob_tcp_keepalive_intvl=1
always   open-mpi-5  PRTE_MCA_oob_tcp_keepalive_probes=6
# Containers may refuse it, and what is large goes through memory that ranks share.
always   open-mpi-4  OMPI_MCA_btl_vader_single_copy_mechanism=none
# What ends the others when a rank is lost: no SIGKILL, by which it may have been lost itself.
always   intel-mpi   I_MPI_JOB_ABORT_SIGNAL=26
# What its mpirun says, a script, before it calls mpiexec.hydra.
slurm    intel-mpi   I_MPI_HYDRA_BOOTSTRAP=slurm
pbs      intel-mpi   I_MPI_HYDRA_RMK=pbs
lsf      intel-mpi   I_MPI_HYDRA_RMK=lsf

# The other way, mpirun waits for ever where the temporary directory is full; daemons on other hosts would
# not know of it.
alone    open-mpi-*  PMIX_MCA_gds=hash
no-ssh   open-mpi-4  OMPI_MCA_plm=isolated
# Ranks then reach each other by sockets. They would anyway, after a banner; their sums have memory of their own.
no-shm   open-mpi-4  OMPI_MCA_btl=^vader
no-shm   open-mpi-5  OMPI_MCA_btl=^sm

shared   open-mpi-4  OMPI_MCA_rmaps_base_oversubscribe=1
shared   open-mpi-5  PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# Spinning, 4 ranks on 2 cores take 100 times as long for a sum.
shared   open-mpi-*  OMPI_MCA_mpi_yield_when_idle=1

unbound  open-mpi-4  OMPI_MCA_hwloc_base_binding_policy=none
unbound  open-mpi-5  PRTE_MCA_hwloc_default_binding_policy=none
unbound  intel-mpi   I_MPI_PIN=0

network  open-mpi-4  OMPI_MCA_oob_tcp_if_include=NETWORK
network  open-mpi-5  PRTE_MCA_prte_if_include=NETWORK
network  open-mpi-*  OMPI_MCA_btl_tcp_if_include=NETWORK
network  mpich       HYDRA_IFACE=NETWORK
network  intel-mpi   I_MPI_HYDRA_IFACE=NETWORK
network  mpich       FI_TCP_IFACE=NETWORK
network  intel-mpi   FI_TCP_IFACE=NETWORK
'

# Its path, and which it is: open-mpi-4, open-mpi-5, mpich, intel-mpi. It says so itself.
launcher_find() {
    local said
    launcher=$(type -P mpirun || type -P mpiexec) ||
        fail 1 "mpirun not found: load the module of your MPI, or apt-get install openmpi-bin"
    # It may take seconds, or hang: a signal ends a `read`, but not the wait for a command.
    IFS= read -r -d '' said < <(exec "$launcher" --version 2>&1) || true
    case $said in
    *'(Open MPI) 4.'* | *'(OpenRTE) 4.'*) launcher_kind=open-mpi-4 ;;
    *'(Open MPI) 5.'* | *'(Open MPI) 6.'*) launcher_kind=open-mpi-5 ;;
    *'Intel(R) MPI Library'*)
        launcher_kind=intel-mpi
        # mpirun would die of USR1, and the ranks go on.
        [[ ! -x ${launcher%/*}/mpiexec.hydra ]] || launcher=${launcher%/*}/mpiexec.hydra
        ;;
    *'HYDRA build details'*) launcher_kind=mpich ;;
    *)
        fail 1 "$launcher is neither Open MPI's, 4 or 5, nor MPICH's nor Intel's (${said%%$'\n'*}):" \
            "start dtrain by it yourself"
        ;;
    esac
}

# Sets `launcher_etc`: where this Open MPI has its settings, as `ompi_info` tells, which may take seconds: it is not
# asked where the folder is plain. Not to be called in $(...): a signal would wait for `ompi_info`.
launcher_find_etc() {
    local prefix folder said=''
    prefix=$(realpath "$launcher")
    prefix=${prefix%/bin/*}
    [[ $prefix != /usr ]] || prefix=
    if [[ -z ${OPAL_PREFIX-}${OPAL_SYSCONFDIR-} ]]; then
        for folder in "$prefix/etc" "$prefix/etc/openmpi"; do
            launcher_etc=$folder
            [[ ! -e $folder/openmpi-mca-params.conf ]] || return 0
        done
    fi
    IFS= read -r said < <(exec "${launcher%/*}/ompi_info" --path sysconfdir --parsable 2>/dev/null) || true
    launcher_etc=${said#path:sysconfdir:}
}

# What Open MPI's own settings of such names are, a line each, those that win first.
launcher_values() { # PATTERN
    local name
    for name in $(compgen -e); do
        [[ ! $name =~ ^(OMPI|PRTE)_MCA_($1)$ ]] || printf '%s\n' "${!name}"
    done
    sed -n -E "s/^[[:space:]]*($1)[[:space:]]*=[[:space:]]*//p" ~/.openmpi/mca-params.conf ~/.prte/mca-params.conf \
        "$launcher_etc"/{openmpi,prte}-mca-params.conf 2>/dev/null | sed 's/[[:space:]]*$//' || true # some are missing
}

# Whether the launcher's own settings name the hosts: in the environment, or in Open MPI's files, which it finds.
launcher_names_hosts() {
    local value
    if [[ $launcher_kind != open-mpi-* ]]; then
        [[ ${HYDRA_HOST_FILE-}${I_MPI_HYDRA_HOST_FILE-} ]]
        return
    fi
    launcher_find_etc
    ! grep -q -s '^[^#]*[^#[:space:]]' "$launcher_etc"/{openmpi,prte}-default-hostfile || return 0
    while read -r value; do
        [[ ${value:-none} == none ]] || return 0
    done < <(launcher_values '[a-z_]*(hostfile|rankfile|rank_file_path|dash_host)')
    return 1
}

# Where Open MPI has the memory that ranks share. After launcher_names_hosts, which has found the settings.
launcher_memory() {
    local value=''
    if [[ $launcher_kind == open-mpi-* ]]; then
        read -r value < <(launcher_values 'btl_(vader|sm)_backing_directory') || true
    fi
    echo "${value:-/dev/shm}"
}

# Makes the settings for an occasion of the table, but those that the user has made.
launcher_set() { # WHEN [NETWORK]
    local when kind setting name value
    while read -r when kind setting; do
        # shellcheck disable=SC2053 # a pattern
        [[ $when == "$1" && $launcher_kind == $kind ]] || continue
        name=${setting%%=*} value=${setting#*=}
        [[ $value != NETWORK ]] || value=$2
        export "$name=${!name:-$value}"
    done <<<"$launcher_settings"
}

# Hydra's hostfile, a line HOST:RANKS each, of what was given to -H and --hostfile in Open MPI's words.
launcher_machines() { # OPTION VALUE...
    while (($#)); do
        case $1 in
        -H) tr , '\n' <<<"$2" ;;
        --hostfile)
            sed -E 's/#.*//; s/^[[:space:]]+//; s/[[:space:]]*=[[:space:]]*/=/g; s/[[:space:]]+max[-_]slots=[0-9]+//
                s/[[:space:]]+slots=([0-9]+)/:\1/; s/[[:space:]]+$//; /^$/d' "$2"
            ;;
        esac
        shift 2
    done
}

# The command line up to the program, as `command`: for `np` ranks, if given, on `hosts`, as options.
launcher_command() {
    local name
    command=("$launcher" ${np:+-n "$np"})
    case $launcher_kind in
    open-mpi-*)
        [[ $launcher_kind == open-mpi-4 ]] || command+=(--output :raw) # or it keeps what has no line's end
        command+=("${hosts[@]}")
        # The others give all variables to every host. Empty ones of CUDA's mean something, too: no GPU.
        for name in DTRAIN_DATA XDG_CACHE_HOME DTRAIN_TERMINAL DTRAIN_MARK; do
            [[ -z ${!name-} ]] || command+=(-x "$name")
        done
        for name in $(compgen -e NCCL_) $(compgen -e CUDA_); do
            command+=(-x "$name")
        done
        ;;
    mpich | intel-mpi)
        [[ $launcher_kind == intel-mpi ]] || command+=(-print-all-exitcodes)
        ((${#hosts[@]})) || return 0
        make_scratch
        [[ -n ${scratch[-1]} ]] || fail 1 "${TMPDIR:-/tmp}: no room for the list of hosts"
        launcher_machines "${hosts[@]}" >"${scratch[-1]}"
        command+=(-machinefile "${scratch[-1]}")
        ;;
    esac
}

# Whether a process lives below this one that is none of the launcher's own: as long as one cannot know, it does.
launcher_has_rank() { # PROCESS
    local file children='' child stat
    for file in "/proc/$1/task/"*/children; do
        read -r children 2>/dev/null <"$file" || [[ -e $file ]] || return 0
        for child in $children; do
            read -r stat 2>/dev/null <"/proc/$child/stat" || continue
            [[ $stat != *') Z '* ]] || continue
            [[ $stat == *'(hydra_'* ]] && ! launcher_has_rank "$child" || return 0
        done
    done
    return 1
}

# --- what they say ----------------------------------------------------------------------------------------

# Open MPI, on standard error: banners, and lines outside of them.
said='Primary job +terminated normally|(mpirun|prterun) detected that one or more processes exited with non-zero|'
said+='MPI_ABORT was invoked|(mpirun|prterun) has exited due to process rank [0-9]+ .* calling +"abort"'
# 4.1.2, at the end, where /dev/shm is missing:
said+='|System call: unlink\(2\) [^ ]*/vader_segment[^ ]* +Error: +No such file'
dead_rank='process rank ([0-9]+) with PID [0-9]+ on node ([^ ]+) exited on +signal ([^.]+)\.'
dead_host='lost communication with a remote daemon.*Remote daemon: [^ ]+ on node ([^ ]+) '
no_daemon='unable to reliably start one or more daemons|daemon has unexpectedly failed after launch'
few_slots='not enough slots available in the system to satisfy the ([0-9]+) '
# 5.0.7, though ranks of a host share memory:
unreachable='mca_btl_tcp_proc_create_interface_graph|Unable to find reachable pairing'
broken='unexpectedly disconnected|failed to TCP connect|does not know how to route a message to the specified daemon'
broken+='|/btl_tcp_[a-z]+\.c:[0-9]+:|\] Read -?[0-9]+, expected '
noise='PMIX ERROR: PMIX_ERR_UNREACH|^mpirun: Forwarding signal |^\[warn\] Epoll MOD|has sent help message'
noise+='|have sent help message|"orte_base_help_aggregate"'
noise+='|: Warning: setpgid\(|^\[hwloc/linux\] |^mpirun: abort is already in progress'
no_way='^ssh: (connect to host|Could not resolve hostname) ([^ :]+)[^:]*: ([^[:cntrl:]]*)' # ssh's own
unread='mpirun: SIGPIPE detected on fd ' # nobody reads standard output any more: it ends the ranks as SIGTERM does
closed='^\[([^]:]+):[0-9]+\] \*\*\* An error occurred in Socket closed' # 5, by a rank beside one that is lost
rule='^(.*[^-])?-{70,}$' # above and below a banner

# Hydra, on standard output: a banner for each rank that was lost, or one for all, and a list of exit codes.
hydra_said='^={70,}$|^=   |^\[mpiexec@[^]]*\] (Exit codes: |Sending Ctrl-C |Press Ctrl-C )'
hydra_said+='|^\[[^] ]+\] [0-9]+(,[0-9]+)*$|^YOUR APPLICATION TERMINATED WITH THE EXIT STRING: '
hydra_said+='|^This typically refers to a problem with |^Please see the FAQ page for '
# As it loses a rank or a host, or cannot start:
hydra_failed='^\[(proxy:[0-9:]+|mpiexec)@[^]]*\] [a-zA-Z_]+ \([^)]*\): (.*)$'
more='^\[[^]]+:[0-9]+\] \*\*\* |^\[(proxy:[0-9:]+|mpiexec)@[^]]*\] ' # what Open MPI and Hydra say after such a line
hydra_abort='^Abort\(([0-9]+)\) on node .*application called MPI_Abort'
hydra_rank='^=   RANK ([0-9]+) PID [0-9]+ RUNNING AT (.*)$' # Intel's, and the next line:
hydra_signal='^=   KILLED BY SIGNAL: ([0-9]+ \([^)]*\))'
hydra_at='^=   PID [0-9]+ RUNNING AT (.*)$'                                # MPICH's
hydra_codes='^(\[mpiexec@[^]]*\] Exit codes: )?(\[[^] ]+\] [0-9]+.*)$' # MPICH's, a host a line, and a later line:
hydra_string='EXIT STRING: (.*) \(signal ([0-9]+)\)'

# Which ranks MPICH may have lost: it ends the others by SIGKILL, and some of them are among its exit codes. Of several
# hosts, in whatever order they come, the host alone.
launcher_suspects() { # SIGNAL CODES, as "[host] 0,9 [host] 0,0"
    local word host='' code rank=0 found=() their_hosts=() hosts=0
    for word in $2; do
        if [[ $word == \[*\] ]]; then
            host=${word//[\[\]]/}
            ((++hosts))
            continue
        fi
        for code in ${word//,/ }; do
            if ((code == $1)); then
                found+=("$rank")
                [[ " ${their_hosts[*]} " == *" $host "* ]] || their_hosts+=("$host")
            fi
            ((++rank))
        done
    done
    if ((hosts > 1 && ${#their_hosts[@]} == 1)); then
        echo "a rank on host ${their_hosts[0]}"
    elif ((hosts > 1 || ${#found[@]} == 0)); then
        echo "a rank"
    elif ((${#found[@]} == 1)); then
        echo "rank ${found[0]} on host ${their_hosts[0]}"
    else
        echo "one of the ranks ${found[*]}"
    fi
}
