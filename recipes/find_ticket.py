"""Find a ticket with any registered search, with its own options; the same as spikeformer-lt find.

accelerate launch recipes/find_ticket.py snip --data.name digits --sparsity 0.9 --snip.images 64
accelerate launch recipes/find_ticket.py early_time --early-time.search imp --imp.rounds 4
python recipes/find_ticket.py --help    # every search

The network is trained from the ticket unless the search ends trained; it is tested once, and the
report is written. A search of your own needs its file: SEARCH --plugins FILE.py.
"""

import sys

from spikeformer_lt.cli import find_command
from spikeformer_lt.config import exit_after

if __name__ == "__main__":
    exit_after(lambda: find_command(sys.argv[1:], "find_ticket.py"), sys.argv[1:])
