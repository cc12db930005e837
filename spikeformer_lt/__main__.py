"""``python -m spikeformer_lt``: the same as the console script ``spikeformer-lt``."""

from spikeformer_lt.console import main

if __name__ == "__main__":
    main(prog="python -m spikeformer_lt")
