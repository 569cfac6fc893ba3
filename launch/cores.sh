# cores.sh - which cores this process may use; sourced by run and variants.

# A line "SOCKET.CORE CPU" for every CPU allowed here; the CPUs (hardware threads) of a core stand together.
list_cpus() {
    local allowed
    allowed=$(taskset -cp "$BASHPID")
    lscpu -p=SOCKET,CORE,CPU | sort -t, -k1,1n -k2,2n -k3,3n | awk -F, -v ranges="${allowed##*: }" '
        BEGIN {
            for (i = split(ranges, range, ","); i > 0; i--) {
                last = split(range[i], ends, "-")
                for (cpu = ends[1] + 0; cpu <= ends[last] + 0; cpu++)
                    usable[cpu]
            }
        }
        $3 in usable { print $1 "." $2, $3 }'
}

# How many cores: hardware threads of one count once, and a container's share of time is the limit.
count_cores() {
    local cores quota period
    cores=$(list_cpus | cut -d' ' -f1 | uniq | wc -l)
    ((cores > 0)) || cores=$(nproc)
    if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]]; then
        quota=$(((quota + period - 1) / period))
        ((quota >= cores)) || cores=$quota
    fi
    echo "$cores"
}
