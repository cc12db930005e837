"""What a run cost and reached: ledger, energy, comparison, pictures, pages."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "Evaluation", "FinishedRun", "Interval", "Paired", "Probe", "build_ledger", "card",
    "compare_predictions", "describe", "early_exit", "energy_markdown", "epoch_ledger",
    "evaluation", "holm", "markdown_table", "measure_energy", "open_run", "open_ticket",
    "over_seeds", "plot_energy", "removed_words", "run_probe", "save_predictions",
    "saved_metrics", "side_by_side", "wilson", "write_comparison", "write_comparison_page",
    "write_csv", "write_energy", "write_report", "write_run_page",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.reports.comparison import (
        side_by_side,
        write_comparison,
        write_comparison_page,
    )
    from spikeformer_lt.reports.energy import energy_markdown, measure_energy, write_energy
    from spikeformer_lt.reports.finished import FinishedRun, open_run, open_ticket
    from spikeformer_lt.reports.ledger import build_ledger, epoch_ledger
    from spikeformer_lt.reports.page import markdown_table, write_csv
    from spikeformer_lt.reports.plots import plot_energy
    from spikeformer_lt.reports.probe import Probe, early_exit, run_probe
    from spikeformer_lt.reports.run_page import (
        Evaluation,
        card,
        describe,
        evaluation,
        removed_words,
        save_predictions,
        saved_metrics,
        write_report,
        write_run_page,
    )
    from spikeformer_lt.reports.statistics import (
        Interval,
        Paired,
        compare_predictions,
        holm,
        over_seeds,
        wilson,
    )
else:
    __getattr__, __dir__ = lazy(__name__)
