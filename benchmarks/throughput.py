"""Training throughput, augmentation included: ``resnet-build train`` against stock loops.

    python benchmarks/throughput.py resnet20 [--turns 7] [--seconds 20] [--contenders ours stock]
    python benchmarks/throughput.py resnet20 --checkout before=../old --checkout after=.

The first form writes ``benchmarks/results/KIND/throughput_SPEC.json``; the second compares
commits, each in its own checkout, and prints the result only. Turns alternate; see
``interleaved.py``.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import baselines
from common import describe_machine, own_results, write
from interleaved import HERE, Contender, answer_turns, speed_ups, take_turns, train_command

from resnet_builder import Spec, build_from_spec, load_spec

CONTENDERS = {
    "ours": "as `resnet-build train` does it by default",
    "ours, eager": "the same with run.compile=false",
    "ours, compiled": "the same with run.compile=true",
    "ours, no kernels": "the same with run.cpu_kernels=false",
    "stock": "per-sample PIL, fp32",
    "tuned stock": "the same with channels-last, bf16 and torch.compile",
}
SETTINGS = {
    "ours, eager": ["run.compile=false"],
    "ours, compiled": ["run.compile=true"],
    "ours, no kernels": ["run.cpu_kernels=false"],
}


def main() -> None:
    """Take turns, and write each contender's rates and the speed-ups of the first over them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", help="bundled spec; with --checkout, one that all of them have")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=["ours", "stock", "tuned stock"]
    )
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    given = parser.parse_args()
    spec = load_spec(given.spec)
    if given.be is not None:
        be_stock(spec, given.spec, tuned=given.be == "tuned stock")
        return
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(start(given, spec, Path(folder)))
        take_turns(contenders, given.turns, given.seconds)
    report = {
        "what": f"images per second of training {given.spec}, augmentation included",
        "turns": given.turns,
        "seconds": given.seconds,
        "machine": describe_machine(),
        "contenders": {
            each.name: {"what": CONTENDERS.get(each.name, "a checkout"), **each.summary()}
            for each in contenders
        },
        f"speed_up_of_{contenders[-1 if given.checkout else 0].name}": speed_ups(
            contenders[::-1] if given.checkout else contenders
        ),
    }
    path = None if given.checkout else own_results() / f"throughput_{given.spec}.json"
    write(path, report)


def start(given: argparse.Namespace, spec: Spec, folder: Path) -> list[Contender]:
    """Start the contenders, one after the other."""
    checkouts = dict(each.split("=", 1) for each in given.checkout)
    contenders = []
    for name in checkouts or given.contenders:
        own = folder / name.replace(" ", "_")
        own.mkdir()
        if name.endswith("stock"):
            command = [__file__, given.spec, "--be", name]
        else:
            command = train_command(spec, given.spec, [*SETTINGS.get(name, ()), *given.set])
        checkout = Path(checkouts.get(name, HERE.parent))
        contenders.append(Contender(name, command, checkout, own))
        print(f"{name} is warm", file=sys.stderr)
    return contenders


def be_stock(spec: Spec, name: str, *, tuned: bool) -> None:
    """Be a contender: train the network in a stock loop."""
    assert spec.train is not None
    answer_turns(spec.train.batch_size)
    baselines.train(
        build_from_spec(name, seed=0),
        size=spec.model.image_size or 32,
        batch_size=spec.train.batch_size,
        tuned=tuned,
    )


if __name__ == "__main__":
    main()
