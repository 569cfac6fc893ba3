#!/usr/bin/env python3
"""The CUDA kernels as nvcc compiles them: without a warning, and so that nothing of them lies in local memory and
1,024 threads of each fit on a multiprocessor, but where more registers are worth more (the fused step has 512)."""
# needs: dtrain

import collections
import importlib.util
import pathlib
import re
import shutil
import subprocess
import tempfile

from tap import check, finish, skip, skip_all

REGISTERS = 65536 // 1024
ROOMY = {"conv1_forward_kernel": 128, "dense_weight_gradient_kernel": 88, "fused_train_kernel": 128,
         "fused_evaluate_kernel": 128}
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'.*?"
                    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
                    r"Used (\d+) registers", re.S)


def compile_to_ptx(nvcc, *source, text=None):
    command = [nvcc, "-O3", "-std=c++17", "-fmad=false", "-Iinclude", "-I.", "-Werror", "all-warnings", "-arch=sm_90",
               "-ptx", "-o", "-", *source]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def compile_definition(nvcc):
    """exp and log as they are defined, in device code; of multiply-adds only those that are written."""
    source = """#include "kernels/definition/exp_log.h"
        __global__ void both_kernel(float *x) { x[0] = defined_exp(x[0]); x[1] = defined_log(x[1]); }"""
    compiled = compile_to_ptx(nvcc, "-x", "cu", "-", text=source)
    multiply_adds = len(re.findall(r"\bfma\.rn\.f32", compiled.stdout))
    check(compiled.returncode == 0 and multiply_adds == 15, f"exp_log.h in device code: {multiply_adds} multiply-adds",
          compiled.stderr)


# Of the instructions in innermost loops with at least 12 multiply-adds, by the file whose they are: multiply-adds, per
# cent. As CUDA 13.0 makes them for sm_90: 84.5, 35.3, 32.2, 82.3, 75.0.
LEAST_SHARE = {"winograd.cuh": 84.4, "conv1.cuh": 35, "conv2_back.cuh": 32, "conv3.cuh": 82.2, "head.cuh": 74.9}


def find_nvdisasm(nvcc):
    """CUDA's toolkit may have it, or Python's package triton, which is not installed for this alone: it has 290 MB."""
    triton = importlib.util.find_spec("triton")
    folders = [f"{folder}/backends/nvidia/bin" for folder in (triton.submodule_search_locations if triton else [])]
    found = (shutil.which("nvdisasm", path=folder) for folder in [str(pathlib.Path(nvcc).parent), *folders, None])
    return next(filter(None, found), None)


def disassemble(nvcc, nvdisasm, source, kernel):
    """[(operation, operands, file)] of a kernel for sm_90, and where its labels are."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        subprocess.run([nvcc, "-O3", "-std=c++17", "-fmad=false", "-Iinclude", "-I.", "-lineinfo", "-arch=sm_90",
                        "-cubin", "-o", cubin.name, source], check=True)
        text = subprocess.run([nvdisasm, "-g", "-c", cubin.name], capture_output=True, text=True, check=True).stdout
    instructions, labels, file = [], {}, ""
    for line in re.split(rf"\.text\.\w*{kernel}\w*:", text)[1].splitlines():
        if found := re.match(r'\s*//## File "([^"]+)", line \d+$', line.rstrip()):
            file = pathlib.Path(found[1]).name
        elif found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?\s*([A-Z0-9_]+)(.*);", line):
            instructions.append((found[1], found[2], file))
    return instructions, labels


def check_machine_code(nvcc):
    nvdisasm = find_nvdisasm(nvcc)
    if nvdisasm is None:
        skip("fused.cu's machine code", "no nvdisasm: CUDA's toolkit has it, or pip install triton")
        return
    instructions, labels = disassemble(nvcc, nvdisasm, "kernels/fused/fused.cu", "fused_train_kernel")
    counts = collections.Counter(operation for operation, _, _ in instructions)
    reductions = counts["RED"] + counts["REDG"]
    check(reductions > 20 and not counts["ATOM"] + counts["ATOMG"],
          f"fused.cu: {reductions} reductions, no atomics, in machine code", counts)
    reads = [operation == "LDG" and ".128" in operands for operation, operands, _ in instructions]
    together = max(sum(reads[first:first + 48]) for first in range(len(reads)))
    check(together == 10, f"update.cuh: {together} pairs of conv3's sums are asked for at once")
    ends = [(labels.get(found[0], end + 1), end) for end, (operation, operands, _) in enumerate(instructions)
            if operation == "BRA" and (found := re.search(r"\.L_x_\d+", operands))]
    loops = [loop for loop in ends if loop[0] <= loop[1]]
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    length, work = collections.Counter(), collections.Counter()
    for first, last in inner:
        files = collections.Counter(file for operation, _, file in instructions[first:last + 1] if operation == "FFMA")
        if files.total() >= 12:
            [(file, _)] = files.most_common(1)
            length[file] += last + 1 - first
            work[file] += files.total()
    shares = {file: 100 * work[file] / length[file] for file in length}
    for file, least in LEAST_SHARE.items():
        share = shares.get(file, 0)
        check(share >= least, f"{file}: {share:.1f}% of its hot loops are multiply-adds",
              f"at least {least}%; {shares}")


def name_of(symbol):
    return re.sub(r"^_Z\w*?\d+([a-z][a-z_0-9]*_kernel).*", r"\1", symbol)


nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
if nvcc is None:
    skip_all("no nvcc on this machine")
compile_definition(nvcc)
sources = sorted(pathlib.Path("kernels").glob("*/*.cu"))
objects = ["build/cuda" / source.with_suffix(".o") for source in sources]
built = subprocess.run(["make", "-s", "-j2", "WERROR=1", *objects], capture_output=True, text=True, check=False)
check(sources and built.returncode == 0, f"{len(sources)} files compile", built.stdout + built.stderr)
tests = subprocess.run(["make", "-s", "WERROR=1", "device"], capture_output=True, text=True, check=False)
check(tests.returncode == 0, "the tests for a GPU compile and link", tests.stdout + tests.stderr)
for source, made in zip(sources, objects):
    told = made.with_suffix(".ptxas").read_text() if made.exists() else ""
    kernels = KERNEL.findall(told)
    warned = [line for line in told.splitlines() if re.search(r"\b(warning|error)\b", line)]
    check(told and not warned, f"{source.name}: compiles without a warning", told)
    expected = 2 * len(re.findall(r"__global__", source.read_text()))  # or more: templates
    check(len(kernels) >= expected, f"{source.name}: {len(kernels)} kernels for sm_80 and sm_90", told)
    for symbol, target, stack, stores, loads, registers in kernels:
        most = ROOMY.get(name_of(symbol), REGISTERS)
        check(int(stack) == int(stores) == int(loads) == 0 and int(registers) <= most,
              f"{name_of(symbol)} for {target}: {registers} registers, nothing in local memory",
              f"{symbol}: {stack} bytes of stack, {stores} + {loads} bytes spilled; at most {most} registers")
# What a step adds to its sums asks for no answer, and no multiply-add stands where none was written, nor is made by a
# driver that translates this: it joins operations that do not say how they are rounded.
ptx = compile_to_ptx(nvcc, "kernels/fused/fused.cu").stdout
check(ptx.count("red.relaxed.gpu.global.add.u64") > 20 and "atom." not in ptx, "fused.cu: reductions, no atomics")
check(ptx.count("fma.rn.f32") > 1000 and ptx.count("mul.rn.f32") > 10 and
      not re.search(r"\b(?:mad|mul|add|sub)\.(?:ftz\.)?f(?:32|64)\b", ptx),
      "fused.cu: fused multiply-adds are those of the source")
check_machine_code(nvcc)
finish()
