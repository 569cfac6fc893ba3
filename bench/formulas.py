"""The formulas of bench/model: what a step takes, from constants.

Sums over hosts are alpha-beta: so many messages in a row of so many bytes each. n bytes, H hosts, L = log2 H:

    tree      2 L (a + n b)             binomial tree: reduce, then broadcast; Open MPI's own choice for a sum in place
    doubling    L (a + n b)             recursive doubling: everybody exchanges everything with a partner
    halving   2 L a + 2 (H-1)/H n b     recursive halving and doubling (Rabenseifner); dtrain's choice
    ring      2 (H-1) (a + n/H b)

A sum over ranks of several hosts is hierarchical: in the host's memory, then between hosts (src/comm/sums.c).
"""

import math

TILE = 16


def fit(points):
    """[((x, y), z)]: the a, b >= 0 of z = a x + b y with the least squares of relative errors."""
    xx = sum((x / z) ** 2 for (x, _), z in points)
    yy = sum((y / z) ** 2 for (_, y), z in points)
    xy = sum(x * y / z ** 2 for (x, y), z in points)
    sx, sy = sum(x / z for (x, _), z in points), sum(y / z for (_, y), z in points)
    determinant = xx * yy - xy * xy
    a, b = (sx * yy - sy * xy) / determinant, (sy * xx - sx * xy) / determinant
    if a < 0:
        return 0, sy / yy
    return (sx / xx, 0) if b < 0 else (a, b)


# --- CPU ranks: milliseconds ------------------------------------------------------------------------------


def weigh(algorithm, hosts, count_bytes, mbits):
    """(messages in a row, milliseconds that their bytes take at this bandwidth)."""
    levels, whole = math.ceil(math.log2(hosts)), count_bytes * 8 / mbits / 1e3
    return {"tree": (2 * levels, 2 * levels * whole), "doubling": (levels, levels * whole),
            "halving": (2 * levels, 2 * (hosts - 1) / hosts * whole),
            "ring": (2 * (hosts - 1), 2 * (hosts - 1) / hosts * whole)}[algorithm]


def network_sum(c, algorithm, hosts, count_bytes, mbits, delay_us):
    messages, wire = weigh(algorithm, hosts, count_bytes, mbits)
    return messages * (c["latency"] + delay_us / 1e3) + c["slowness"] * wire


def shared_sum(c, count_bytes, ranks):
    """Every rank adds a slice of everybody's terms, so the bytes do not grow with the ranks; their meetings do."""
    return c["shared_start"] * ranks / 2 + c["shared_byte"] * count_bytes if ranks > 1 else 0


def cpu_step(c, batch, ranks, cores, count_bytes, hosts=1, mbits=0, delay_us=0):
    """cores: of all hosts."""
    tiles = math.ceil(batch / TILE)
    slowest = math.ceil(tiles / ranks)
    step = c["fixed"] + c["per_tile"] * slowest + c["update"]
    if ranks > 1:
        step += c["imbalance"] * (c["fixed"] + c["per_tile"] * slowest)
    if ranks > cores:  # they take turns
        step = ((c["fixed"] + c["update"]) * ranks + c["per_tile"] * tiles) / cores
    step += shared_sum(c, count_bytes, ranks // hosts)
    return step + (network_sum(c, "halving", hosts, count_bytes, mbits, delay_us) if hosts > 1 else 0)


# --- GPUs: microseconds -----------------------------------------------------------------------------------

NODE = 8  # GPUs
GPU_KERNELS, GPU_KERNEL_US = 18, 2.5
GPU_FLOPS, GPU_SHARE, SAMPLE_FLOP = 67e12, 0.2, 2 * 1602360
SAMPLE_US = SAMPLE_FLOP / GPU_FLOPS / GPU_SHARE * 1e6
NCCL_BASE, NCCL_NVLINK, NCCL_NET, NCCL_GBYTES = 4.4, 1.2, 8.5, 29

GPU_ASSUMPTIONS = [
    f"A step has about {GPU_KERNELS} kernels in a row, which in a CUDA graph take {GPU_KERNEL_US} us each however "
    f"little they do (assumed; no source but the order of magnitude): {GPU_KERNELS * GPU_KERNEL_US:.0f} us.",
    f"A sample is {SAMPLE_FLOP / 1e6:.1f} Mflop ({SAMPLE_FLOP // 2:,} multiply-adds), done at {100 * GPU_SHARE:.0f}% "
    f"(assumed) of an H100's {GPU_FLOPS / 1e12:.0f} Tflop/s in fp32 (NVIDIA's data sheet, SXM): {SAMPLE_US:.2f} us.",
    "NCCL's all-reduce of the gradient's 496 KB (64-bit integers), by NCCL's own cost model (src/graph/tuning.cc at "
    f"01afd20: Tree, LL128, its constants for A100): {NCCL_BASE} us, and twice {NCCL_NVLINK} us for each further GPU "
    f"of a node and {NCCL_NET} us for each doubling of nodes; {NCCL_GBYTES} GB/s (half of 105 GB/s x 0.915, x 0.6 at "
    f"this size). {NODE} GPUs a node.",
    "A rank has at least one sample: beyond 256 GPUs the strong batch leaves GPUs idle. Input, logging and checks cost "
    "nothing.",
]


def nccl_sum(gpus, count_bytes):
    if gpus == 1:
        return 0
    nodes = math.ceil(gpus / NODE)
    hops = (min(gpus, NODE) - 1) * NCCL_NVLINK + math.log2(nodes) * NCCL_NET
    return NCCL_BASE + 2 * hops + count_bytes / NCCL_GBYTES / 1e3


def gpu_step(batch, gpus, count_bytes):
    return GPU_KERNELS * GPU_KERNEL_US + math.ceil(batch / gpus) * SAMPLE_US + nccl_sum(gpus, count_bytes)
