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
from spikeformer_lt.events.recording import FIELDS, UNITS, Events, Sensor, parse_columns
from spikeformer_lt.events.split import Sample

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
            sensor = Sensor.parse(options.sensor) if options.sensor else None
            columns, ticks = parse_columns(options.columns), UNITS[options.unit]
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


def _parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog)
    commands = parser.add_subparsers(dest="command", required=True)
    told = "read every recording and report counts, durations, rates and faults"
    checks = commands.add_parser("check", help=told)
    checks.add_argument("dir", metavar="DIR", help="folder of recordings, or root of a data set")
    checks.add_argument("--data", metavar="NAME", help="a data set, for its parts and split")
    checks.add_argument("--image-size", type=int, help="with --data: as the data set takes it")
    told = "size that coordinates must fit (rows first)"
    checks.add_argument("--sensor", metavar="HxW", help=told)
    told = "order of columns without names (x,y,p,t_us, or the data set's own)"
    checks.add_argument("--columns", default=_Usual(",".join(FIELDS)), help=told)
    told = "of times in npy, npz, txt and HDF5 (us, or the data set's own); a field t_us is in us"
    checks.add_argument("--unit", choices=tuple(UNITS), default=_Usual("us"), help=told)
    checks.add_argument("--json", action="store_true", help="print JSON")
    told = "write the simulated moving_gestures as files of DVS128 Gesture"
    writes = commands.add_parser("write", help=told)
    writes.add_argument("dir", metavar="DIR", help="folder that gets DvsGesture or DVSGesture")
    told = "the original's AEDAT 3.1 and labels (aedat31), or tonic's arrays (npy)"
    writes.add_argument("--form", choices=("aedat31", "npy"), default="aedat31", help=told)
    for part in ("train", "test"):
        told = f"gestures of the {part} part; all of them by default"
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
