"""Which column `slipway init` takes for the label, what it makes of ids, and `--force`."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.loading.errors import ConfigError
from flows.command.cli import main
from tasks.samples import csv_samples
from tasks.samples.guesses import Guess, guess

LAST = {
    "free text": ("comment", lambda n: f"said number {n}"),
    "identifier": ("order_id", lambda n: 7000 + n % 60),
    "date": ("day", lambda n: f"2026-01-{n % 28 + 1:02d}"),
    "timestamp": ("created_at", lambda n: 1_795_000_000 + 60 * (n % 40)),
    "constant": ("version", lambda n: 3),
    "list": ("tags", lambda n: "a;b" if n % 2 else "a"),
}


def _sample(folder: Path, *last: str) -> Path:
    """Two hundred orders: an amount, whether it was paid, and more columns."""
    lines = [",".join(["amount", "paid", *(LAST[each][0] for each in last)])]
    for n in range(200):
        more = [str(LAST[each][1](n)) for each in last]
        lines.append(",".join([f"{n * 7 % 100}.5", "yes" if n % 3 else "no", *more]))
    file = folder / "orders.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def _guessed(file: Path) -> Guess:
    return guess(csv_samples.profile([file]))


@pytest.mark.parametrize("last", LAST)
def test_the_last_column_is_skipped_if_it_is_no_label(tmp_path: Path, last: str) -> None:
    """The one before it that could be one is taken, and it says so."""
    label = _guessed(_sample(tmp_path, last)).label
    assert label.name == "paid"
    assert label.why.startswith("guessed: the last column that could be one; 2 classes")


def test_several_are_skipped(tmp_path: Path) -> None:
    """As many as there are."""
    assert _guessed(_sample(tmp_path, *LAST)).label.name == "paid"


def test_a_sample_without_any_asks_for_it(tmp_path: Path) -> None:
    """By naming the option."""
    file = tmp_path / "orders.csv"
    file.write_text("\n".join(["order_id,comment", *(f"{n},said {n}" for n in range(99))]) + "\n")
    with pytest.raises(ConfigError, match="which feature is the label") as caught:
        _guessed(file)
    assert caught.value.hint == "name it by --label"


def test_numbers_that_are_names_become_hashes(tmp_path: Path) -> None:
    """An id that occurs several times is no amount."""
    made = _guessed(_sample(tmp_path, "identifier"))
    (order,) = [feature for feature in made.features if feature.name == "order_id"]
    assert order.why == "60 numbers that are names: taken for ids"
    assert order.column == {
        "kind": "embedding", "of": {"kind": "hash_bucket", "key": "order_id", "buckets": 128}, "dimension": 4,
    }  # fmt: skip


def test_force_replaces_what_init_writes_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of one's own stays; the hint about the label comes first."""
    file, folder = _sample(tmp_path), tmp_path / "orders"
    command = ["init", "orders", str(file), "--folder", str(folder)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.index("Another: --label NAME") < shown.index("because")
    (folder / "notes.md").write_text("mine")
    (folder / "pipeline.yaml").write_text("changed")
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "pipeline.yaml").read_text() == "changed"
    assert main([*command, "--force"]) == 0
    assert main(["check", str(folder)]) == 0
    assert (folder / "notes.md").read_text() == "mine"
    assert not list(tmp_path.glob(".orders-*"))
