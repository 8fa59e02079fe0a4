"""New weights to another process on the same GPU by CUDA IPC handles, as stage `ril` gives them to vLLM's workers.

On a CPU the other process maps a file in the place of the handle.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stages.engines.weight_buckets import iter_buckets, unpack
from stages.engines.weight_group import describe_buffer, free_buffers, make_buffer, open_buffer, synchronize
from tests.gpu.ledger import Figures

ROOT = Path(__file__).resolve().parents[2]


def send_weights(width: int, layers: int) -> Figures:
    """Sends `layers` matrices of `width` squared in bf16 and fp32; AssertionError if they arrive as others.

    The rate includes the sums by which both sides compare them.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kinds = (torch.bfloat16, torch.float32)
    named = [(f"{layer}", torch.randn(width, width, device=device).to(kinds[layer % 2])) for layer in range(layers)]
    limit = 4 * named[0][1].nbytes
    command = [sys.executable, "-m", "tests.gpu.weights", device.type]
    content, buckets = 0, 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        buffer = make_buffer(device, limit, Path(scratch))
        began = time.monotonic()
        for bucket in iter_buckets(named, limit):
            bucket.pack(buffer)
            synchronize(device)
            told = [bucket.slots, bucket.size, describe_buffer(buffer, Path(scratch))]
            print(json.dumps(told), file=other.stdin, flush=True)
            found = json.loads(other.stdout.readline() or "[]")
            assert found == [float(tensor.double().sum()) for _, tensor in bucket.tensors], "other weights arrived"
            content, buckets = content + bucket.content, buckets + 1
        seconds = time.monotonic() - began
        other.stdin.close()
        assert other.wait(60) == 0
        free_buffers(device)
    return {"gigabytes": content / 1e9, "buckets": buckets, "gigabytes_per_second": content / seconds / 1e9}


def receive_weights(device: torch.device) -> None:
    """Takes in what `send_weights` sends, and answers with the sum of each tensor."""
    synchronize(device)
    print("ready", flush=True)
    for line in sys.stdin:
        slots, size, described = json.loads(line)
        sent = open_buffer(described, device)
        whole = sent[:size].clone()
        synchronize(device)
        del sent
        print(json.dumps([float(tensor.double().sum()) for _, tensor in unpack(whole, slots)]), flush=True)


if __name__ == "__main__":
    receive_weights(torch.device(sys.argv[1], 0) if sys.argv[1] == "cuda" else torch.device("cpu"))
