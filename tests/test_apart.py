"""Pictures that a command draws never come among the images that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from spectral import cli
from spectral.errors import StorageError
from spectral.files.atomic import require_apart

BUDGET = ("budget", "bundled/resnet20", "--limit", "4", "--quiet")
COMPARE = ("compare", "bundled/resnet20", "bundled/resnet20-blurpool", "--limit", "4", "--quiet")
STUDY = ("study", "3", "--limit", "4", "--quiet")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        pixels = np.random.default_rng(number).integers(256, size=(32, 32, 3), dtype=np.uint8)
        (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / "a" / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("words", [BUDGET, COMPARE, STUDY], ids=lambda words: words[0])
def test_a_folder_among_the_images_is_refused_before_anything_is_written(
    words: tuple[str, ...], photos: Path
) -> None:
    before = sorted(photos.rglob("*"))
    for out in (photos, photos / "out"):
        found = CliRunner().invoke(cli.main, [*words, "--images", str(photos), "--out", str(out)])
        assert found.exit_code == 2
        assert "lies among the images" in found.output
    assert sorted(photos.rglob("*")) == before


def test_labelled_images_of_a_study_count_too(photos: Path) -> None:
    given = ("study", "7", "--data", str(photos), "--out", str(photos / "out"), "--quiet")
    found = CliRunner().invoke(cli.main, list(given))
    assert found.exit_code == 2
    assert "lies among the images" in found.output


@pytest.mark.parametrize("pattern", ["*/*.png", "**/*.png", "**", "*/[0-9].*"])
def test_a_folder_to_which_a_pattern_comes_is_refused(pattern: str, photos: Path) -> None:
    with pytest.raises(StorageError, match="choose a folder outside"):
        require_apart(photos / "a", str(photos / pattern))


def test_a_link_to_the_images_is_the_images(photos: Path) -> None:
    link = photos.parent / "link"
    link.symlink_to(photos)
    with pytest.raises(StorageError):
        require_apart(link / "out", str(photos))
    with pytest.raises(StorageError):
        require_apart(photos / "out", str(link))


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("samples", "samples-out"), ("photos", "photos-out"), ("photos", "photos/.out"),
        ("photos/a/*.png", "photos/out"), ("photos/a/*.jpg", "photos/a"), ("photos/a/0.png", "photos/a"),
        ("photos/a", "photos"),
    ],
)  # fmt: skip
def test_other_folders_are_taken(
    images: str, out: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    require_apart(Path(out), images)
