"""``python -m spikeformer_lt.events check DIR``: the data report of a folder of recordings.

``write DIR`` makes files of the simulated gestures. Exit status: 0 without a fault, 1 with faults,
2 for wrong input (one line on standard error).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from spikeformer_lt.config import check, verdict
from spikeformer_lt.events.recording import FIELDS, LARGEST_SIDE, UNITS, Events, Sensor
from spikeformer_lt.events.split import Sample
from spikeformer_lt.usage import Parser

PROGRAM = "python -m spikeformer_lt.events"


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command line, by default that of the process, and return the exit status."""
    options = _parser(prog).parse_args(argv)
    # Each fault is in the report, once; the same lines as warnings would bury it.
    logger = logging.getLogger("spikeformer_lt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if options.command == "write":
            return _write(options)
        from spikeformer_lt.events.check import check_dataset, check_folder

        data, size = options.data, options.image_size
        check(not (data and options.sensor), "sensor", options.sensor, "for a folder, not --data")
        check(bool(data) or size is None, "image_size", size, "for a data set: --data NAME")
        if options.data:
            given = (options.unit, options.columns)
            own = [None if isinstance(value, _Usual) else value for value in given]
            report = check_dataset(options.data, options.dir, options.image_size, *own)
        else:
            from spikeformer_lt.events.recording import parse_columns

            sensor = Sensor.parse(options.sensor) if options.sensor else None
            usual = isinstance(options.unit, _Usual)
            columns, ticks = parse_columns(options.columns), None if usual else UNITS[options.unit]
            report = check_folder(options.dir, sensor, columns, ticks)
    except Exception as fault:
        if options.debug:
            raise
        status, line = verdict(fault, ())
        sys.stderr.write(f"{line}\n")
        return status
    finally:
        logger.setLevel(level)
    text = json.dumps(report.as_dict(), indent=1) if options.json else report.text()
    sys.stdout.write(f"{text.encode('utf-8', 'backslashreplace').decode()}\n")
    return 0 if report.clean else 1


class _Usual(str):
    """A default, which a data set's own value goes over."""

    __slots__ = ()


CHECK = """
Read every recording and report counts, durations, rates and faults.
Exit status: 0 without a fault, 1 with faults, 2 for wrong input.

%(prog)s data/mine --sensor 128x128
%(prog)s data/mine --columns t,x,y,p --unit ms --json
%(prog)s data --data dvs128_gesture    # the parts and the split of a data set
"""
WRITE = """
Write the simulated moving_gestures as files of DVS128 Gesture.

%(prog)s gestures
%(prog)s gestures --form npy --limit-train 20 --limit-test 10
"""


def _parser(prog: str = PROGRAM) -> Parser:
    about = "%(prog)s check data/mine\n%(prog)s write gestures"
    parser = Parser(prog=prog, description=f"Check recordings, or write simulated ones.\n\n{about}")
    commands = parser.add_subparsers(dest="command", required=True)
    checks, writes = (
        commands.add_parser(name, help=doc.strip().splitlines()[0], description=doc)
        for name, doc in (("check", CHECK), ("write", WRITE))
    )
    checks.add_argument("dir", metavar="DIR", help="folder of recordings, or root of a data set")
    told = "a data set, for its parts and split (default: a folder of any form)"
    checks.add_argument("--data", metavar="NAME", help=told)
    told = "with --data: pixels a side (default: the data set's own)"
    checks.add_argument("--image-size", type=int, metavar="N", help=told)
    told = f"size that coordinates must fit, rows first (default: {LARGEST_SIDE}x{LARGEST_SIDE})"
    checks.add_argument("--sensor", metavar="HxW", help=told)
    told = "order of columns without names; with --data its own, unless given"
    checks.add_argument("--columns", default=_Usual(",".join(FIELDS)), help=told)
    told = "of times in npy, npz, txt and HDF5, t_us apart; with --data its own, unless given"
    checks.add_argument("--unit", choices=tuple(UNITS), default=_Usual("us"), help=told)
    checks.add_argument("--json", action="store_true", help="print JSON")
    writes.add_argument("dir", metavar="DIR", help="folder that gets DvsGesture or DVSGesture")
    told = "the original's AEDAT 3.1 and labels (aedat31), or tonic's arrays (npy)"
    writes.add_argument("--form", choices=("aedat31", "npy"), default="aedat31", help=told)
    for part in ("train", "test"):
        told = f"gestures of the {part} part (default: all of them)"
        writes.add_argument(f"--limit-{part}", type=int, metavar="N", help=told)
    for each in (checks, writes):
        each.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _write(options: argparse.Namespace) -> int:
    from spikeformer_lt.events.simulate import write_gestures
    from spikeformer_lt.registry import create_dataset

    limits = {f"limit_{part}": getattr(options, f"limit_{part}") for part in ("train", "test")}
    made: Any = create_dataset("moving_gestures", **limits)

    def recorded(*parts: Any) -> Iterator[tuple[Sample, Events]]:
        return ((part.samples[i], part.events(i)[0]) for part in parts for i in range(len(part)))

    parts = {"train": recorded(made.train, made.val), "test": recorded(made.test)}
    home = write_gestures(options.dir, parts, options.form)
    sys.stdout.write(f"simulated gestures written to {home}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
