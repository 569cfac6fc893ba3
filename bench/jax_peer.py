"""jax_peer - JAX's side of bench/peers: the study's nets trained on the CPU by one jitted step, in a process of its
own, with whichever jax python3 or /usr/bin/python3 has. XLA takes as many threads as the process has cores.
"""

import json
import os
import subprocess
import sys
import time

BATCH, LR, MOMENTUM = 256, 0.01, 0.9
CONVS, DENSE = ((3, 6), (6, 16), (16, 120)), ((120, 84), (84, 10))  # channels in and out
LAYOUTS = {"contiguous": "NCHW", "channels_last": "NHWC"}


def find_jax():
    """A Python that has jax, or None."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import jax"], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


def run(python, net, layout, seconds, cores):
    """What measure_rate says, on so many cores."""
    mine = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run([python, os.path.abspath(__file__), net, layout, str(seconds)], stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False,
                          preexec_fn=lambda: os.sched_setaffinity(0, mine))
    if done.returncode != 0:
        sys.exit(f"JAX, {cores} cores, {layout}: failed")
    return json.loads(done.stdout.splitlines()[-1])


# --- in that process ----------------------------------------------------------------------------------------


def make_step(net, layout):
    """The jitted step: (state, images, labels) -> state; state: weights, momentum, and the key of the masks."""
    import jax
    from jax import lax
    import jax.numpy as jnp

    axes = LAYOUTS[layout]
    spatial = [axes.index("H"), axes.index("W")]
    window = [2 if axis in spatial else 1 for axis in range(4)]

    def convolve(x, weight, bias):
        shape = [-1 if axis == axes.index("C") else 1 for axis in range(4)]
        return jax.nn.relu(lax.conv_general_dilated(x, weight, (1, 1), "VALID",
                                                    dimension_numbers=(axes, "OIHW", axes)) +
                           bias.reshape(shape))

    def drop(x, key, shape):
        return jnp.where(jax.random.bernoulli(key, 0.5, shape), 2 * x, 0)

    def drop_channels(x, key):
        return drop(x, key, [1 if axis in spatial else size for axis, size in enumerate(x.shape)]) if net in "CD" else x

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")

    def loss(weights, images, labels, key):
        keys = jax.random.split(key, 4)
        (c1, c2, c3, f1, f2), x = weights, images
        x = pool(drop_channels(convolve(x, *c1), keys[0]))
        x = pool(drop_channels(convolve(x, *c2), keys[1]))
        x = drop_channels(convolve(x, *c3), keys[2]).reshape(len(images), -1)
        x = jax.nn.relu(x @ f1[0] + f1[1])
        x = (drop(x, keys[3], x.shape) if net in "BD" else x) @ f2[0] + f2[1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1).mean()

    def step(state, images, labels):
        weights, momentum, key = state
        key, mine = jax.random.split(key)
        gradient = jax.grad(loss)(weights, images, labels, mine)
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, gradient)
        return jax.tree.map(lambda w, m: w - LR * m, weights, momentum), momentum, key

    return jax.jit(step, donate_argnums=0)


def initial_state():
    """Weights and biases uniform in +-1/sqrt(fan in), as PyTorch's."""
    import jax
    import jax.numpy as jnp

    shapes = [((out, into, 5, 5), out, into * 25) for into, out in CONVS]
    shapes += [((into, out), out, into) for into, out in DENSE]
    keys = iter(jax.random.split(jax.random.key(1), 2 * len(shapes)))
    uniform = lambda shape, fan_in: jax.random.uniform(next(keys), shape, minval=-fan_in**-0.5, maxval=fan_in**-0.5)
    weights = tuple((uniform(shape, fan_in), uniform((out,), fan_in)) for shape, out, fan_in in shapes)
    return weights, jax.tree.map(jnp.zeros_like, weights), jax.random.key(2)


def measure_rate(net, layout, seconds):
    """Samples a second, on batches that lie ready in memory, and the seconds until the first step was done."""
    import jax

    shape = (BATCH, 3, 32, 32) if layout == "contiguous" else (BATCH, 32, 32, 3)
    keys = jax.random.split(jax.random.key(3), 16)
    batches = [(jax.random.uniform(key, shape, minval=-1, maxval=1), jax.random.randint(key, (BATCH,), 0, 10))
               for key in keys]
    state, step = jax.block_until_ready(initial_state()), make_step(net, layout)

    def steps(number):
        nonlocal state
        begin = time.perf_counter()
        for i in range(number):
            state = step(state, *batches[i % len(batches)])
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    start = steps(1)
    steps(2)  # to warm up
    number = int(max(3, seconds * 3 / steps(3)))
    return {"samples_per_second": number * BATCH / steps(number), "version": jax.__version__, "start_seconds": start}


if __name__ == "__main__":
    print(json.dumps(measure_rate(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
