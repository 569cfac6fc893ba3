# shellcheck shell=bash
# cores.sh - which cores this process may use; sourced by run and variants.

# A line "SOCKET.CORE CPU" for every CPU allowed here; the CPUs (hardware threads) of a core stand together.
list_cpus() {
    local allowed
    allowed=$(LC_ALL=C taskset -cp "$BASHPID") # some translations have another colon
    lscpu -p=SOCKET,CORE,CPU 2>/dev/null | sort -t, -k1,1n -k2,2n -k3,3n | awk -F, -v ranges="${allowed##*: }" '
        BEGIN {
            for (i = split(ranges, range, ","); i > 0; i--) {
                last = split(range[i], ends, "-")
                for (cpu = ends[1] + 0; cpu <= ends[last] + 0; cpu++)
                    usable[cpu]
            }
        }
        $3 in usable { print $1 "." $2, $3 }'
}

# The least number of cores whose time this process may use, a line for each limit: a cgroup's quota, or one above it.
list_quotas() {
    local controllers path quota period folder
    while IFS=: read -r _ controllers path; do
        case ,$controllers, in
        ,,) folder=/sys/fs/cgroup ;;
        *,cpu,*) folder=/sys/fs/cgroup/cpu ;;
        *) continue ;;
        esac
        while :; do
            quota='' period=''
            if [[ -z $controllers ]]; then
                read -r quota period 2>/dev/null <"$folder$path/cpu.max" || true
            else
                read -r quota 2>/dev/null <"$folder$path/cpu.cfs_quota_us" || true
                read -r period 2>/dev/null <"$folder$path/cpu.cfs_period_us" || true
            fi
            if [[ $quota =~ ^[1-9][0-9]*$ && $period =~ ^[1-9][0-9]*$ ]]; then
                echo $(((quota + period - 1) / period))
            fi
            [[ $path == */* ]] || break
            path=${path%/*}
        done
    done </proc/self/cgroup
}

# A line SOCKET.CORE for every core allowed here.
list_cores() {
    list_cpus | cut -d' ' -f1 | uniq
}

# How many cores: hardware threads of one count once, and a container's share of time is the limit.
count_cores() {
    local cores quota
    cores=$(list_cores | wc -l)
    ((cores > 0)) || cores=$(nproc)
    for quota in $(list_quotas 2>/dev/null); do
        ((quota >= cores)) || cores=$quota
    done
    echo "$cores"
}
