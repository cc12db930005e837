"""What a run cost and reached: ledger, energy, comparison, pictures, pages."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.reports.comparison import write_comparison as write_comparison
    from spikeformer_lt.reports.comparison import write_comparison_page as write_comparison_page
    from spikeformer_lt.reports.energy import energy_markdown as energy_markdown
    from spikeformer_lt.reports.energy import measure_energy as measure_energy
    from spikeformer_lt.reports.energy import write_energy as write_energy
    from spikeformer_lt.reports.finished import FinishedRun as FinishedRun
    from spikeformer_lt.reports.finished import open_run as open_run
    from spikeformer_lt.reports.finished import open_ticket as open_ticket
    from spikeformer_lt.reports.ledger import build_ledger as build_ledger
    from spikeformer_lt.reports.page import markdown_table as markdown_table
    from spikeformer_lt.reports.page import write_csv as write_csv
    from spikeformer_lt.reports.plots import plot_energy as plot_energy
    from spikeformer_lt.reports.run_page import describe as describe
    from spikeformer_lt.reports.run_page import save_predictions as save_predictions
    from spikeformer_lt.reports.run_page import write_report as write_report
    from spikeformer_lt.reports.run_page import write_run_page as write_run_page
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
