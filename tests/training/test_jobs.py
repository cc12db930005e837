"""Jobs: finished ones are kept, a failure is named, the others go on."""

from __future__ import annotations

import sys

import pytest

from spikeformer_lt.errors import SpikeformerError
from spikeformer_lt.training.jobs import Job, run_jobs

SCRIPT = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--run.out") + 1])
out.mkdir(parents=True, exist_ok=True)
print("threads", os.environ["OMP_NUM_THREADS"])
if "fail" in sys.argv:
    sys.exit("it broke")
(out / "report.json").write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(SCRIPT)
    return str(path)


def test_jobs_run_with_their_own_directory_and_resume(script, tmp_path):
    jobs = [Job("a", seed, tmp_path / f"a-{seed}", (script, "--x", "1")) for seed in (0, 1, 2)]
    run_jobs(jobs, at_once=2)
    for job in jobs:
        assert job.report.read_text().endswith(f"--run.out {job.folder} --run.resume auto")
    assert "threads" in (tmp_path / "a-0.out").read_text()


def test_finished_jobs_are_not_run_again(script, tmp_path):
    job = Job("a", 0, tmp_path / "a", (script,))
    job.folder.mkdir()
    job.report.write_text("kept")
    run_jobs([job])
    assert job.report.read_text() == "kept"


def test_a_failed_job_is_named_after_the_others_have_finished(script, tmp_path):
    bad = Job("bad", 7, tmp_path / "bad", (script, "fail"))
    good = Job("good", 0, tmp_path / "good", (script,))
    with pytest.raises(SpikeformerError, match=r"1 of 2 runs failed; the first, bad seed 7"):
        run_jobs([bad, good])
    assert good.report.exists()
    assert "it broke" in (tmp_path / "bad.out").read_text()
    assert sys.executable
