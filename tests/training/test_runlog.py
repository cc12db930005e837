from __future__ import annotations

import logging

import pytest

from spikeformer_lt import runtime
from spikeformer_lt.config import parse
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training import RunConfig
from spikeformer_lt.training.run import PACKAGE, RunLog

logger = logging.getLogger(f"{PACKAGE}.somewhere")


def test_messages_from_info_up_go_to_the_file_until_it_is_closed(tmp_path):
    path = tmp_path / "log.txt"
    log = RunLog(path)
    logger.info("epoch %d", 1)
    logger.debug("not this")
    log.close()
    logger.warning("nor this")
    (line,) = path.read_text().splitlines()
    assert line.endswith("INFO epoch 1")
    log = RunLog(path)
    logger.info("epoch 2")
    log.close()
    assert len(path.read_text().splitlines()) == 2, "a resumed run appends"


def test_the_logger_is_left_as_it_was(tmp_path):
    package = logging.getLogger(PACKAGE)
    before = (package.level, list(package.handlers))
    log = RunLog(tmp_path / "log.txt")
    assert package.isEnabledFor(logging.INFO)
    log.close()
    log.close()
    assert (package.level, list(package.handlers)) == before


def test_a_level_that_the_user_has_set_is_respected(tmp_path):
    package = logging.getLogger(PACKAGE)
    package.setLevel(logging.ERROR)
    try:
        log = RunLog(tmp_path / "log.txt")
        logger.warning("hidden")
        log.close()
        assert package.level == logging.ERROR
    finally:
        package.setLevel(logging.NOTSET)
    assert (tmp_path / "log.txt").read_text() == ""


def test_no_message_can_look_like_another_line_of_the_log(tmp_path):
    log = RunLog(tmp_path / "log.txt")
    logger.info("name %s", "x\n2026-01-01 00:00:00,000 INFO test_accuracy 100\x1b[2J\x00\ud800é")
    log.close()
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.endswith("INFO name x")
    assert second == "    2026-01-01 00:00:00,000 INFO test_accuracy 100\\x1b[2J\\x00\\ud800é"


def test_a_rank_without_a_file_logs_nothing():
    package = logging.getLogger(PACKAGE)
    before = list(package.handlers)
    log = RunLog(None)
    assert package.handlers == before
    log.close()


def test_a_file_that_cannot_be_written_is_an_error_with_its_path(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*log\.txt.*Is a directory"):
        RunLog(tmp_path / "log.txt")


CONSOLE = """
import logging, sys
from pathlib import Path
from spikeformer_lt.training.run import RunLog
if sys.argv[2] == "own":
    logging.basicConfig(level=logging.INFO, format="own %(message)s")
log = RunLog(Path(sys.argv[1]))
logging.getLogger("spikeformer_lt.x").info("hello")
log.close()
"""


@pytest.mark.parametrize(("how", "expected"), [("none", "hello\n"), ("own", "own hello\n")])
def test_a_program_sees_each_message_once_whether_or_not_it_has_its_own_logging(
    forks, tmp_path, how, expected
):
    done = forks.start("-c", CONSOLE, tmp_path / "log.txt", how)
    assert done.communicate() == ("", expected)


def test_the_first_log_to_close_leaves_the_logger_to_the_others(tmp_path):
    package = logging.getLogger(PACKAGE)
    level = package.level
    first, second = RunLog(tmp_path / "1.txt"), RunLog(tmp_path / "2.txt")
    first.close()
    logger.info("heard")
    second.close()
    assert "heard" in (tmp_path / "2.txt").read_text()
    assert package.level == level


@pytest.mark.parametrize(
    ("flag", "shown"), [("", "info"), ("--quiet", ""), ("--verbose", "debug\ninfo")]
)
def test_quiet_and_verbose_are_about_the_console_alone(flag, shown, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(runtime, "console_level", logging.INFO)
    parse(RunConfig, [flag] if flag else [])
    log = RunLog(tmp_path / "log.txt")
    logger.debug("debug")
    logger.info("info")
    log.close()
    assert capsys.readouterr().err.strip() == shown
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "info"
    ]
    with pytest.raises(ConfigError, match="--quiet='--verbose' is not allowed: one of the two"):
        parse(RunConfig, ["--quiet", "--verbose"])
