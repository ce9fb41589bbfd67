"""What real clients sent, sent again: each request is read as it was, and answered with the same status and type."""

import json
from pathlib import Path

import pytest

from tests.realclients.golden import FOLDER, replayed
from tests.realclients.model import ScriptedModel
from tests.realclients.server import app_of
from tests.server.conftest import running

FILES = sorted(FOLDER.glob("*.json"))


def test_there_are_recordings_of_all_clients() -> None:
    assert len(FILES) >= 12


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recorded_requests_are_read_as_ever(file: Path) -> None:
    model = ScriptedModel()
    records = json.loads(file.read_text())
    assert records
    with running(app_of(model)) as url:
        for record in records:
            expected = {key: record[key] for key in ("status", "type", "reading") if key in record}
            assert replayed(url, model, record) == expected, f"{record['method']} {record['path']}"
