"""Callbacks in the loops of Lightning and transformers: right numbers, untouched training, no hooks left."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command import environment
from torch import Tensor, nn
from torch.nn import functional as F

from spectral import layers
from spectral.errors import SpectralError, SpectralWarning
from spectral.integrations import make_aa_layer, reduce_values
from spectral.measurement import measure
from spectral.sites import find_sites

SIDE, BATCHES, EACH = 16, 6, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))


def pictures() -> Tensor:
    return torch.rand(BATCHES * EACH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def expected_avr(net: nn.Module, batch: int) -> float:
    table = measure(net, pictures()[batch * EACH :][:EACH], ("avr",), taps=("dense",), progress=False)
    return float(table.loc[table["metric"] == "avr", "value"].mean())


def hooks_of(net: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in net.modules()
    )


def read_events(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="extra lightning isn't installed")


def make_module(pl: Any, rate: float, through_root: bool = True) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self(x) if through_root else self.net(x), y)

        def validation_step(self, batch: Any, index: int) -> None:
            self.net(1 - batch[0])  # other numbers, which mustn't be logged

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), rate)

    return Module()


def loader() -> torch.utils.data.DataLoader[Any]:
    labels = torch.arange(BATCHES * EACH) % 2
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures(), labels), batch_size=EACH)


def fit(pl: Any, module: Any, folder: Path, callbacks: list[Any]) -> None:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, log_every_n_steps=1, callbacks=callbacks,
        logger=[CSVLogger(folder, "csv"), TensorBoardLogger(folder, "board")], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, val_check_interval=2, num_sanity_val_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        trainer.fit(module, loader(), loader())


@pytest.mark.slow
def test_lightning_logs_what_measure_measures(lightning, tmp_path):
    from spectral.integrations import AliasingCallback

    module = make_module(lightning, rate=0.0)
    fit(lightning, module, tmp_path, [AliasingCallback(SIDE, every=3)])
    table = pd.read_csv(tmp_path / "csv/version_0/metrics.csv")
    logged = table["aliasing/mean/dense/avr"].dropna().tolist()
    first, fourth = expected_avr(module.net, 0), expected_avr(module.net, 3)
    assert first != pytest.approx(fourth, rel=1e-4)
    assert logged == pytest.approx([first] * 3 + [fourth] * 3, rel=1e-6)
    assert read_events(tmp_path / "board")["aliasing/mean/dense/avr"] == pytest.approx(logged, rel=1e-5)
    assert hooks_of(module) == 0


@pytest.mark.slow
def test_lightning_trains_as_without(lightning, tmp_path):
    from spectral.integrations import AliasingCallback

    plain, watched, inner = (
        make_module(lightning, 0.1, through_root) for through_root in (True, True, False)
    )
    fit(lightning, plain, tmp_path / "a", [])
    fit(lightning, watched, tmp_path / "b", [AliasingCallback(SIDE)])
    fit(lightning, inner, tmp_path / "c", [AliasingCallback(SIDE, module="net")])
    for other in (watched, inner):
        for before, after in zip(plain.parameters(), other.parameters(), strict=True):
            assert torch.equal(before, after)
    assert "aliasing/mean/dense/avr" in (tmp_path / "c/csv/version_0/metrics.csv").read_text()


def test_lightning_says_what_is_wrong(lightning, tmp_path):
    from spectral.integrations import AliasingCallback

    with pytest.raises(SpectralError, match="example="):
        AliasingCallback()
    with pytest.raises(SpectralError, match="no module 'nothing'"):
        fit(lightning, make_module(lightning, 0.1), tmp_path, [AliasingCallback(SIDE, module="nothing")])


DDP = """
import sys, torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from test_integrations import *
from spectral.integrations import AliasingCallback
import lightning.pytorch as pl

if __name__ == "__main__":
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", log_every_n_steps=1,
                      callbacks=[AliasingCallback(SIDE, every=1)], logger=CSVLogger(sys.argv[1], "csv"),
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(make_module(pl, 0.0), loader())
"""


@pytest.mark.slow
def test_lightning_reduces_over_processes(lightning, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DDP)
    given = {**environment(), "PYTHONWARNINGS": "ignore"}
    given["PYTHONPATH"] = f"{Path(__file__).parent}:{given.get('PYTHONPATH', '')}:{':'.join(sys.path)}"
    run = subprocess.run(
        [sys.executable, script, tmp_path], env=given, capture_output=True, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stderr[-2000:]
    logged = pd.read_csv(tmp_path / "csv/version_0/metrics.csv")["aliasing/mean/dense/avr"].dropna().tolist()
    # Lightning deals the pictures out in an order of its own: each to one process, once
    table = measure(network(), pictures(), ("avr",), taps=("dense",), progress=False)
    assert len(logged) == BATCHES // 2
    mean = float(table.loc[table["metric"] == "avr", "value"].mean())
    assert sum(logged) / len(logged) == pytest.approx(mean, rel=1e-6)


def test_one_process_keeps_its_values():
    found = reduce_values({"a": 1.0, "b": math.nan})
    assert found["a"] == 1.0
    assert math.isnan(found["b"])


@pytest.fixture
def trainer_of(tmp_path: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="extra transformers isn't installed")
    pytest.importorskip("accelerate", reason="extra transformers isn't installed")

    def make(model: nn.Module, callbacks: list[Any] | None = None, rate: float = 0.0) -> Any:
        rows = [{"pixel_values": x, "labels": i % 2} for i, x in enumerate(pictures())]
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=BATCHES, logging_steps=1,
            per_device_train_batch_size=EACH, learning_rate=rate, lr_scheduler_type="constant", use_cpu=True,
            report_to=["tensorboard"], save_strategy="no", disable_tqdm=True, seed=0, weight_decay=0.0,
        )  # fmt: skip

        class InOrder(transformers.Trainer):
            def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
                return torch.utils.data.DataLoader(rows, batch_size=EACH, collate_fn=self.data_collator)

        return InOrder(model=model, args=args, train_dataset=rows, callbacks=callbacks)

    return make


class Classifier(nn.Module):
    """What the Trainer takes: named inputs, a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": F.cross_entropy(logits, labels), "logits": logits}
        )


@pytest.mark.slow
def test_trainer_logs_what_measure_measures(trainer_of, tmp_path, monkeypatch):
    from spectral.integrations import AliasingTrainerCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model = Classifier()
    trainer = trainer_of(model)
    AliasingTrainerCallback(SIDE, module="net", every=2).add_to(trainer)
    trainer.train()
    expected = [expected_avr(model.net, 2 * (step // 2)) for step in range(BATCHES)]
    history = [row["aliasing/mean/dense/avr"] for row in trainer.state.log_history if "loss" in row]
    assert history == pytest.approx(expected, rel=1e-5)
    logged = read_events(tmp_path)
    (tag,) = (tag for tag in logged if tag.endswith("aliasing/mean/dense/avr"))
    assert logged[tag] == pytest.approx(expected, rel=1e-5)
    assert hooks_of(model) == 0


@pytest.mark.slow
def test_a_training_that_failed_can_be_left_without_hooks(trainer_of):
    from spectral.integrations import AliasingTrainerCallback

    class Failing(Classifier):
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            raise ValueError("out of luck")

    model = Failing()
    trainer = trainer_of(model)
    callback = AliasingTrainerCallback(SIDE, module="net").add_to(trainer)
    with pytest.raises(ValueError, match="out of luck"):
        trainer.train()
    assert hooks_of(model) > 0
    callback.detach()
    assert hooks_of(model) == 0


@pytest.mark.slow
def test_trainer_warns_where_reports_miss_the_numbers(trainer_of):
    from spectral.integrations import AliasingTrainerCallback

    model = Classifier()
    untouched = copy.deepcopy(model.state_dict())
    with pytest.warns(SpectralWarning, match="add_to"):
        trainer_of(model, [AliasingTrainerCallback(SIDE, module="net")]).train()
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "method"),
    [*(("resnet18", method) for method in ("blurpool", "learned", "flc", "aps", "wavelet")),
     ("resnetaa50", "blurpool")],
)  # fmt: skip
def test_layers_stand_in_for_those_of_timm(name, method):
    timm = pytest.importorskip("timm")
    layer = type(layers.make_pool(method, 8))
    model = timm.create_model(name, pretrained=False, aa_layer=make_aa_layer(method)).eval()
    ours = [path for path, module in model.named_modules() if type(module) is layer]
    assert len(ours) >= 3
    sites = find_sites(model, 64)
    assert all(any(site.module.startswith(path) for site in sites) for path in ours)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_an_unknown_layer_is_refused_at_once():
    with pytest.raises(SpectralError, match="blurpol"):
        make_aa_layer("blurpol")
