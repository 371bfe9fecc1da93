"""Signals, volumes and several inputs by command: a file of arrays, or a function that is named."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import spectral
from spectral.cli import main
from spectral.data import Values, adapt_images, open_images
from spectral.errors import SpectralError

OWN = """
import torch
from torch import nn

def seeded(net):
    for number, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(number))
    return net

def audio():
    return seeded(nn.Sequential(nn.Conv1d(1, 4, 9, 4, 4), nn.ReLU(), nn.Conv1d(4, 4, 5, 4, 2),
                                nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)))

def volume():
    return seeded(nn.Sequential(nn.Conv3d(1, 3, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                                nn.Linear(3, 3)))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5)
        seeded(self)

    def forward(self, image, scale):
        return self.head(self.conv(image).relu().mean((2, 3)) * scale[:, None])

def drawn(count=6):
    return torch.rand(count, 1, 256, generator=torch.Generator().manual_seed(1))

class Items(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i):
        if i >= 6: raise IndexError
        return drawn()[i], i % 5

def loader(): return torch.utils.data.DataLoader(Items(), batch_size=4)
def raising(): raise RuntimeError("no such luck")
def needing(folder): return drawn()
def nothing(): return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "audio.npy", rng.standard_normal((6, 1, 256)).astype(np.float32))
    volumes = rng.standard_normal((5, 1, 8, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "volume.npz", x=volumes, label=np.arange(5) % 3)
    image, scale = rng.random((5, 3, 16, 16)).astype(np.float32), rng.random(5).astype(np.float32)
    np.savez(tmp_path / "two.npz", scale=scale, image=image, label=np.arange(5))
    np.savez(tmp_path / "unnamed.npz", image, scale)
    np.save(tmp_path / "pixels.npy", rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8))
    np.save(tmp_path / "number.npy", np.float32(3))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, code=0):
    found = CliRunner().invoke(main, [*args, "--quiet"])
    assert found.exit_code == code, found.output
    return found.output


@pytest.mark.parametrize(
    ("net", "data", "n", "labels"),
    [
        ("audio", "audio.npy", 6, 0), ("volume", "volume.npz", 5, 5), ("Two", "two.npz", 5, 5),
        ("Two", "unnamed.npz", 5, 0), ("audio", "own.py:loader", 6, 6), ("audio", "own.py:drawn", 6, 0),
    ],
)  # fmt: skip
def test_the_command_gives_what_the_function_gives(net, data, n, labels, folder):
    run("measure", f"own.py:{net}", "--images", data, "--out", "run", "--metrics", "alias_power_ratio,sis")
    table = spectral.read("run/measurements")
    assert table["image"].replace("", np.nan).nunique() == n
    namespace: dict[str, object] = {}
    exec(OWN, namespace)
    model = namespace[net]()
    given = {
        "audio.npy": lambda: torch.from_numpy(np.load("audio.npy")),
        "volume.npz": lambda: torch.from_numpy(np.load("volume.npz")["x"]),
        "own.py:drawn": namespace["drawn"],
        "own.py:loader": namespace["drawn"],
    }.get(data, lambda: tuple(torch.from_numpy(np.load("two.npz")[name]) for name in ("image", "scale")))()
    expected = spectral.measure(model, given, ["alias_power_ratio", "sis"], progress=False)
    keys = ["image", "site", "tap", "metric"]
    both = table.merge(expected, on=keys, suffixes=("", "_api"))
    assert len(both) == len(expected) > 0  # known labels tell one number more
    np.testing.assert_allclose(both["value"], both["value_api"], rtol=1e-5, atol=1e-9)
    assert len([label for label in (open_images(data).labels or ()) if label is not None]) == labels


@pytest.mark.parametrize(
    ("net", "data", "sites"), [("audio", "audio.npy", 2), ("volume", "volume.npz", 1), ("Two", "two.npz", 1)]
)
def test_a_diagnosis_takes_them(net, data, sites, folder):
    options = ["--methods", "flc", "--budget-images", "2", "--out", "found"]
    said = run("diagnose", f"own.py:{net}", "--images", data, *options)
    assert f"of {sites} measured site" in said
    assert f"{data}" in (folder / "found" / "page.html").read_text()


def test_every_other_command_takes_them(folder):
    assert "2 downsampling sites" in run("sites", "own.py:audio", "--images", "audio.npy")
    assert "all sites" in run("attribute", "own.py:audio", "--images", "audio.npy", "--limit", "2")
    assert "decimation" in run("budget", "own.py:audio", "--images", "audio.npy", "--limit", "2")
    both = ["own.py:audio", "own.py:audio+flc"]
    assert "twin" in run("compare", *both, "--images", "audio.npy", "--metrics", "avr")


@pytest.mark.parametrize(
    ("net", "data"), [("audio", "audio.npy"), ("volume", "volume.npz"), ("Two", "two.npz")]
)
def test_a_conversion_is_repaired_on_them_and_its_file_measured(net, data, folder):
    own, file = f"own.py:{net}", "smooth.safetensors"
    run("convert", own, "--method", "blurpool", "--calibrate", data, "--out", file)
    found = np.load(data)
    arrays = {"x": found} if data.endswith("npy") else {k: found[k] for k in found.files if k != "label"}
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    example = {name: x[:1] for name, x in given.items()}
    if len(given) == 1:
        given, example = given["x"], example["x"]
    expected = spectral.reconstruct(
        spectral.convert(spectral.load_model(own), "blurpool", example=example), given
    ).state_dict()
    for known in (example,) if net == "Two" else (example, None):  # a file knows one shape alone
        loaded = spectral.load_model(file, architecture=own, example=known)
        for name, value in loaded.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert "avr" in run("measure", file, "--architecture", own, "--images", data)


def test_a_limit_is_a_choice_over_the_classes_and_a_seed(folder):
    some = open_images("volume.npz", limit=3, seed=1)
    assert sorted(some.labels) == [0, 1, 2]
    assert len(some) == 3
    assert some.fingerprint != open_images("volume.npz", limit=3, seed=2).fingerprint
    assert len(open_images("own.py:loader", limit=4)) == 4
    assert open_images("pixels.npy", limit=2).size == (16, 16)
    with pytest.raises(SpectralError, match="whole number ≥ 1"):
        open_images("audio.npy", limit=0)


def test_what_they_are_of_is_written_down(folder):
    run("measure", "own.py:Two", "--images", "two.npz", "--json", "found.json", "--limit", "4")
    facts = json.loads((folder / "found.json").read_text())
    assert (facts["images"], facts["count"]) == ("file:two.npz", 4)
    assert facts["fingerprint"] == open_images("two.npz", limit=4).fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["own.py:raising"], "own.py:raising: the function raised RuntimeError: no such luck"),
        (["own.py:needing"], "own.py:needing needs arguments (folder)"),
        (["own.py:nothing"], "own.py:nothing gave None"),
        (["own.py:missing"], "there is no 'missing' in it"),
        (["missing.npy"], "missing.npy can't be read as arrays: there is no such file; check the path"),
        (["objects.npy"], "objects.npy can't be read as arrays (Object arrays cannot be loaded"),
        (["audio.npy", "--images", "two.npz"], "audio.npy can't be joined with other images"),
        (["audio.npy", "--mean", "0.5", "--std", "0.5"], "--mean is for images"),
        (["audio.npy", "--input-size", "64"], "--input-size is for images"),
        (["two.npz"], "the forward of Sequential failed on"),
        (
            ["number.npy"],
            "file:number.npy: expected tensors of two axes or more, the first that of the images",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(options, said, folder):
    output = run("measure", "own.py:audio", "--images", *options, code=2)
    assert said in output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", [["measure", "own.py:audio"], ["diagnose", "own.py:audio"]])
def test_what_fails_at_once_leaves_no_folder(command, folder):
    run(*command, "--images", "missing.npy", "--out", "some/out", code=2)
    assert not (folder / "some" / "out").exists()


def test_a_file_of_python_is_run_only_where_one_of_its_names_is_given(folder):
    (folder / "trap.py").write_text("raise SystemExit('run')")
    assert "run" not in run("measure", "own.py:audio", "--images", "trap.py", code=2).split("Error:")[0]


def pack(*members: tuple[str, bytes]) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in members:
            file.writestr(name, content)
    return made.getvalue()


def save(values: np.ndarray) -> bytes:
    np.save(made := io.BytesIO(), values)
    return made.getvalue()


def claim(shape: str, content: bytes = b"") -> bytes:
    """Say that an array has some shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def swell(packed: bytes, size: int) -> bytes:
    """Have the directory say that the first member unfolds to so many bytes."""
    place = packed.index(b"PK\x01\x02") + 24
    return packed[:place] + struct.pack("<I", size) + packed[place + 4 :]


SMALL = save(np.ones((2, 3, 8, 8), np.float32))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "far more than memory": (claim(f"({10**15},)", b"1234"), ""),
    "more than a number": (claim(f"({10**20}, 3)"), ""),
    "a truth": (claim("(True, 3)", bytes(12)), ""),
    "nested": (claim("(" * 9000), ""),
    "cut": (SMALL[:-9], "(could only read|cannot reshape)"),
    "followed": (SMALL + SMALL, "more follows its first array"),
    "a member that claims": (pack(("x.npy", claim(f"({10**15},)", b"1234"))), ""),
    "a cut zip": (pack(("x.npy", SMALL))[:-30], "not a zip file"),
    "of one name": (pack(("x.npy", SMALL), ("x.npy", SMALL)), "it has 'x' twice"),
    "no array": (pack(("x.npy", SMALL), ("notes.txt", b"no")), "'notes.txt' in it is no array"),
    "a zip in it": (pack(("x.npy", pack(("x.npy", SMALL)))), "magic string"),
    "of dates": (save(np.zeros((2, 3, 8, 8), "datetime64[s]")), "got an array of datetime64"),
    "of text alone": (pack(("z.npy", save(np.full(2, "a")))), "there are no images"),
    "a compression that nobody uses": (
        pack(("x.npy", SMALL)).replace(b"\x08\x00", struct.pack("<H", zipfile.ZIP_BZIP2)),
        "as numpy never does",
    ),
    "a bomb": (swell(pack(("x.npy", SMALL)), 400_000_000), "MiB that unfold to 381"),
    "too few labels": (pack(("x.npy", SMALL), ("label.npy", save(np.arange(1)))), "1 labels of 2 inputs"),
    "pixels and too many labels": (
        pack(("x.npy", save(np.ones((2, 8, 8, 3), np.uint8))), ("label.npy", save(np.arange(3)))),
        "3 labels of 2 inputs",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_of_arrays_is_refused(kind, tmp_path):
    content, said = HOSTILE[kind]
    (tmp_path / "hostile.npz").write_bytes(content)
    with pytest.raises(SpectralError, match=rf"hostile\.npz:? .*{said}"):
        open_images(tmp_path / "hostile.npz")


SET = "type('Items', (torch.utils.data.Dataset,), {'__getitem__': lambda s, i: torch.zeros(3, 8, 8), %s})()"
DEEP = "functools.reduce(lambda inner, _: %s, range(10**5), torch.zeros(2, 3, 8, 8))"
GIVEN = {
    "(lambda a: a.append(a) or a)([])": "nested more than 64 deep, or in itself",
    "(lambda d: d.update(x=d) or d)({'y': torch.zeros(2, 3, 8, 8)})": "nested more than 64 deep",
    DEEP % "[inner]": "nested more than 64 deep",
    DEEP % "{'x': inner}": "nested more than 64 deep",
    "iter([%s])" % (DEEP % "[inner]"): "nested more than 64 deep",
    "[[[0] * 2000] * 2000] * 2000": "more than 2097152 values are nested",
    SET % "'__len__': lambda s: -1": "length of Items can't be read .ValueError",
    SET % "'__len__': lambda s: 'six'": "length of Items can't be read .TypeError",
    SET % "'__len__': lambda s: 10**12": "Items has 1000000000000 items, more than",
    "torch.utils.data.DataLoader(%s)"
    % (SET % "'__len__': lambda s: 10**12"): "more than 67108864; give a part",
    "(torch.zeros(1, 3, 1024, 1024) for _ in itertools.count())": "more than 512 MiB come one by one",
    "(np.zeros((1024, 1024, 3), np.uint8) for _ in itertools.count())": "more than 512 MiB come one by one",
    "torch.zeros(1).expand(10**5, 3, 10**5, 3000)": "a tensor of 343322754 MiB stands for 4 bytes",
    "np.broadcast_to(np.zeros(1, np.uint8), (10**6, 10**4, 10**4, 3))": "an array of 286102295 MiB stands",
    "{'x': torch.rand(2, 3, 8, 8), 'label': torch.zeros(1).long().expand(10**13)}": "stands for 8 bytes",
    "(torch.zeros(2, 3, 8, 8).to_sparse(), torch.zeros(2))": "a tensor is sparse_coo",
    "torch.zeros(2, 3, 8, 8, device='meta')": "a tensor is meta",
    "torch.quantize_per_tensor(torch.zeros(2, 3, 8, 8), 1., 0, torch.quint8)": "a tensor is quantised",
    "iter([(torch.zeros(3, 8, 8).to_sparse(), 0)])": "a tensor is sparse_coo",
    "np.ma.masked_array(np.zeros((2, 3, 8, 8)), mask=True)": "masked values",
    "np.zeros((2, 3, 8, 8), np.longdouble)": "isn't of numbers that torch has",
    "{'x': np.zeros((2, 3), [('a', int)])}": "isn't of numbers that torch has",
    "(1 // 0 for _ in [0])": "gives what can't be read as inputs .ZeroDivisionError",
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it has given up
@pytest.mark.parametrize("made", GIVEN)
def test_what_a_function_gives_that_cannot_be_read_is_refused(made, tmp_path):
    own = tmp_path / "odd.py"
    own.write_text(f"import functools, itertools\nimport numpy as np, torch\ndef load(): return {made}\n")
    with pytest.raises(SpectralError, match=rf"odd\.py:load.* {GIVEN[made]}"):
        open_images(f"{own}:load")


@pytest.mark.parametrize("named", [False, True])
def test_arrays_of_any_order_of_bytes_and_strides_are_read(named, tmp_path):
    values = np.random.default_rng(0).random((3, 1, 16)).astype(np.float32)
    for array in (values.astype(">f4"), values[::-1].copy()[::-1]):
        found = adapt_images({"x": array} if named else array, "example")
        np.testing.assert_array_equal(found["x"] if named else found, values)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", ">i4", "i8"])
def test_labels_are_whole_numbers_of_any_width(kind, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 1, 16), np.float32), label=np.array([2, 0, 1], kind))
    assert open_images(tmp_path / "a.npz").labels == [2, 0, 1]


def test_values_are_told_apart_and_chosen():
    pairs = Values("here", (torch.arange(12.0).view(3, 4), torch.arange(3)), [5, 6, 7])
    some = pairs.choose([2, 0])
    assert some.content[0][:, 0].tolist() == [8, 0]
    assert (some.content[1].tolist(), some.labels) == ([2, 0], [7, 5])
    assert some.fingerprint != pairs.fingerprint == Values("there", pairs.content).fingerprint
