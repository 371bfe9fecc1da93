"""Published weights against their published accuracy: what can be scored is, the rest has a reason."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from click.testing import CliRunner

from spectral.data import load_images
from spectral.experiments.published import CIFAR10, CLAIMS, COLUMNS, IMAGENET, Claim, check_claims, main
from spectral.models import load_model, robustbench
from spectral.models.sources.published import CIFAR_FILES, NULA_REPOSITORIES
from spectral.perturb import measure_predictions

pytestmark = pytest.mark.filterwarnings("ignore::spectral.SpectralWarning")


def test_rows_have_the_accuracy_or_the_reason() -> None:
    images = load_images("samples", size=32, limit=24)
    claims = [Claim("bundled/resnet20", CIFAR10, 0.5), Claim("bundled/resnet20", CIFAR10, 0.95),
              Claim("bundled/nowhere", CIFAR10, 0.9), Claim("timm/resnet50", IMAGENET, 0.8)]  # fmt: skip
    table = pd.DataFrame(check_claims(claims, {CIFAR10: images}, progress=False))[COLUMNS]
    assert len(table) == 3  # nothing to score the last on
    correct = measure_predictions(load_model("bundled/resnet20"), images, ["clean"], progress=False)[
        "correct"
    ]
    assert table["n"][0] == correct.notna().sum() == 20
    assert table["accuracy"][0] == pytest.approx(correct.dropna().mean())
    assert list(table["agrees"][:2]) == [False, True]
    assert math.isnan(table["accuracy"][2])
    assert "nowhere" in table["reason"][2]
    assert list(table["reason"][:2]) == ["", ""]


def test_every_claim_is_of_a_known_name_and_a_share() -> None:
    assert len({claim.model for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.accuracy is None or (0.5 < claim.accuracy < 1 and claim.source)
        source, name = claim.model.split("/")
        known = {"robustbench": robustbench.MODELS, "cifar-hub": CIFAR_FILES, "nula": NULA_REPOSITORIES}
        assert name in known.get(source, [name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --imagenet, --cifar10 or both"),
        (["--cifar10", "x", "--models", "a/b"], "is published here of a/b"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output
