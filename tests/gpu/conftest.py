"""Each test here runs twice: small on the processor, in every run of the tests; and on a card, where there is one."""

from pathlib import Path
from time import monotonic

import pytest
import report
import torch
from extraction import few
from on_gpu import MSVD, TINY, made_data

MINUTES = 7.5  # after which no test on a card begins: `make gpu` ends within eight
STARTED = monotonic()
ROWS: list[dict] = []
NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CARD)], scope="module")
def device(request):
    """The device that a test measures."""
    if request.param == "cuda" and monotonic() - STARTED > 60 * MINUTES:
        pytest.skip(f"{MINUTES} minutes are over")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def size(device):
    """How much is measured there."""
    return MSVD if device.type == "cuda" else TINY


@pytest.fixture(scope="module")
def made(size, tmp_path_factory):
    """A corpus of this size."""
    return made_data(tmp_path_factory.mktemp("made"), size)


@pytest.fixture(scope="module")
def rendered(device, tiny_corpus):
    """Clips of the embedded corpus, few on a processor."""
    return tiny_corpus if device.type == "cuda" else few(tiny_corpus, 2)


@pytest.fixture
def note(device):
    """Function: keep rows for the table; those of a processor are for the test alone."""
    return ROWS.extend if device.type == "cuda" else lambda rows: None


def pytest_sessionfinish():
    """Publish what a card showed."""
    if ROWS:
        report.publish(ROWS, Path(__file__).parent.parent.parent / "docs" / "performance.md")
