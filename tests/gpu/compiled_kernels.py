#!/usr/bin/env python3
"""The CUDA kernels as nvcc compiles them: without a warning, and so that nothing of them lies in local memory and
1,024 threads of each fit on a multiprocessor, but where more registers are worth more (the fused step has 512)."""

import pathlib
import re
import shutil
import subprocess

from tap import check, finish, skip_all

TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]
REGISTERS = 65536 // 1024
ROOMY = {"conv1_forward_kernel": 128, "dense_weights_kernel": 88, "fused_train_kernel": 128,
         "fused_evaluate_kernel": 128}
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'.*?"
                    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
                    r"Used (\d+) registers", re.S)


def compile_kernels(nvcc, source):
    flags = ["-O3", "-std=c++17", "-Iinclude", "-I.", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    flags += ["-fmad=false"] if "fused" in str(source) else []
    targets = [word for target in TARGETS for word in ("-gencode", target)]
    command = [nvcc, *flags, *targets, "-Xptxas", "-v", "-c", "-o", "/dev/null", source]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def compile_to_ptx(nvcc, *source, text=None):
    command = [nvcc, "-O3", "-std=c++17", "-fmad=false", "-Iinclude", "-I.", "-Werror", "all-warnings", "-arch=sm_90", "-ptx",
               "-o", "-", *source]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def compile_definition(nvcc):
    """exp and log as they are defined, in device code; of multiply-adds only those that are written."""
    source = """#include "kernels/definition/exp_log.h"
        __global__ void both_kernel(float *x) { x[0] = defined_exp(x[0]); x[1] = defined_log(x[1]); }"""
    compiled = compile_to_ptx(nvcc, "-x", "cu", "-", text=source)
    multiply_adds = len(re.findall(r"\bfma\.rn\.f32", compiled.stdout))
    check(compiled.returncode == 0 and multiply_adds == 15, f"exp_log.h in device code: {multiply_adds} multiply-adds",
          compiled.stderr)


def name_of(symbol):
    return re.sub(r"^_Z\w*?\d+([a-z][a-z_0-9]*_kernel).*", r"\1", symbol)


nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
if nvcc is None:
    skip_all("no nvcc on this machine")
compile_definition(nvcc)
for source in sorted(pathlib.Path("kernels").glob("*/*.cu")):
    compiled = compile_kernels(nvcc, source)
    kernels = KERNEL.findall(compiled.stdout)
    warned = [line for line in compiled.stdout.splitlines() if re.search(r"\b(warning|error)\b", line)]
    check(compiled.returncode == 0 and not warned, f"{source.name}: compiles without a warning", compiled.stdout)
    expected = 2 * len(re.findall(r"__global__", source.read_text()))  # or more: templates
    check(len(kernels) >= expected, f"{source.name}: {len(kernels)} kernels for sm_80 and sm_90", compiled.stdout)
    for symbol, target, stack, stores, loads, registers in kernels:
        check(int(stack) == int(stores) == int(loads) == 0 and int(registers) <= ROOMY.get(name_of(symbol), REGISTERS),
              f"{name_of(symbol)} for {target}: {registers} registers, nothing in local memory",
              f"{symbol}: {stack} bytes of stack, {stores} + {loads} bytes spilled; at most {ROOMY.get(name_of(symbol), REGISTERS)} registers")
# What a step adds to its sums asks for no answer, and no multiply-add stands where none was written.
ptx = compile_to_ptx(nvcc, "kernels/fused/fused.cu").stdout
check(ptx.count("red.relaxed.gpu.global.add.u64") > 20 and "atom." not in ptx, "fused.cu: reductions, no atomics")
check(ptx.count("fma.rn.f32") > 1000 and "mad.f32" not in ptx and ptx.count("mul.rn.f32") + ptx.count("mul.f32") > 10,
      "fused.cu: fused multiply-adds are those of the source")
finish()
