"""The one rule for labels: names decide, in whatever order they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace as Some
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)
from torchvision.models import ResNet18_Weights

import spectral
from spectral.analysis import weigh_models
from spectral.classes import (
    CIFAR10_CLASSES,
    find_classes,
    list_imagenet,
    match_labels,
    match_models,
    match_names,
)
from spectral.data.datasets import find_classes as find_dataset_classes
from spectral.errors import SpectralError, SpectralWarning

SYNSETS = list_imagenet()
CIFAR_NET = Some(spectral_info=Some(classes=CIFAR10_CLASSES, num_classes=10))
IMAGENET_NET = Some(num_classes=1000)  # names nothing, as timm's networks


def labelled(labels, classes):
    return Some(labels=labels, classes=classes)


def test_the_order_of_the_names_is_no_matter():
    found = match_labels(CIFAR_NET, labelled([0, 9, None], CIFAR10_CLASSES[::-1]))
    assert found.index == {label: 9 - label for label in range(10)}
    assert found.renumber([0, 9, None]) == [9, 0, None]


@pytest.mark.parametrize("spelling", [str.upper, str.title, lambda name: f" {name.replace('e', 'e')} "])
def test_spelling_is_no_matter(spelling):
    names = [spelling(name) for name in CIFAR10_CLASSES]
    assert match_names(names, CIFAR10_CLASSES).index == {label: label for label in range(10)}
    assert match_names(["Great_White-Shark"], ["great white shark"]).index == {0: 0}


def test_numbers_that_happen_to_fit_are_no_match():
    found = match_labels(CIFAR_NET, labelled(range(10), [f"person {i}" for i in range(10)]))
    assert found.index == {}
    assert found.reason == "the network has 0 of the labels' 10 classes (not person 0, person 1, person 2, …)"


def test_some_classes_that_the_network_lacks_are_named():
    stl = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    found = match_labels(CIFAR_NET, labelled([2, 3], stl))
    assert found.renumber([0, 2, 3, 9]) == [0, None, 3, 9]
    assert found.reason == "the network has 8 of the labels' 10 classes (not car, monkey)"


@pytest.mark.parametrize("form", ["{0}", "{0}_folder", "{0} - a note"])
def test_synset_folders_count_imagenets_classes_in_any_choice(form):
    """300 of 1000 folders, sorted: their numbers are 0 … 299, the network's are others."""
    chosen = sorted(SYNSETS[3::3][:300])
    found = match_labels(IMAGENET_NET, labelled([5], [form.format(name) for name in chosen]))
    assert found.reason == ""
    assert [SYNSETS[found.index[i]] for i in range(300)] == chosen
    assert found.index != {i: i for i in range(300)}


def test_imagenets_names_by_torchvision_and_timm_are_its_synsets():
    weights = pytest.importorskip("torchvision").models.ResNet18_Weights.DEFAULT
    told = Some(spectral_info=Some(classes=tuple(weights.meta["categories"]), num_classes=1000))
    found = match_labels(told, labelled([0], list(SYNSETS)))
    assert found.index == {i: i for i in range(1000)}  # crane and crane, maillot and maillot among them


def test_some_of_imagenets_names_are_found_among_all_of_them():
    """Two folders don't make ImageNet, but a network that names its 1000 classes does."""
    words = Some(classes=list(ResNet18_Weights.DEFAULT.meta["categories"]))
    found = match_labels(words, labelled([0, 1, 2], ["goldfish", "Tench", "great white shark"]))
    assert found.index == {0: 1, 1: 0, 2: 2}
    assert match_names(["tench, Tinca tinca", "hen"], SYNSETS).index == {0: 0, 1: 8}
    assert "(not crane)" in match_names(["crane", "hen", "cock"], words.classes).reason  # of two classes


def test_synsets_mean_nothing_to_a_network_of_another_number_of_classes():
    found = match_labels(Some(num_classes=10), labelled([0], list(SYNSETS[:10])))
    assert found.index == {}
    assert "doesn't name its classes" in found.reason


def test_names_mean_nothing_to_a_network_without_any_until_somebody_says_so():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    assert match_labels(net, labelled([0, 1], ["cat", "dog"])).index == {}
    images = spectral.load_images("samples", size=32, limit=4)
    own = images.with_classes(None)
    assert match_labels(net, images).index == {}
    assert match_labels(net, own).renumber(own.labels) == own.labels


def test_a_class_for_the_background_in_front_of_imagenets():
    """As TensorFlow's networks have: 1001 classes, each one further."""
    names = ["background", *ResNet18_Weights.DEFAULT.meta["categories"]]
    assert match_names([SYNSETS[0], SYNSETS[8]], names).index == {0: 1, 1: 9}
    assert match_names(["background", "hen"], names).index == {0: 0, 1: 9}
    assert match_names(["cat"], ["background", "cat"]).index == {0: 1}


def test_names_are_those_of_the_column_that_has_the_labels():
    class Column(Some):
        """A feature of the Hub's datasets."""

    features = {"label": Column(dtype="int64"), "fine_label": Column(dtype="int64", names=["a", "b"])}
    assert find_dataset_classes(Some(features=features), [0, 1]) is None
    features["label"] = Column(dtype="string")
    assert find_dataset_classes(Some(features=features), [0, 1]) == ["a", "b"]


def test_folders_of_numbers_count_themselves_only_where_their_order_does_too():
    net = Some(num_classes=12)
    assert match_labels(net, labelled([0, 2], ["0", "1", "2"])).index == {0: 0, 2: 2}
    assert match_labels(net, labelled([0, 2], ["00", "01", "02"])).index == {0: 0, 2: 2}
    assert match_labels(net, labelled([11], [str(i) for i in range(12)])).index == {11: 11}
    for names in (["0", "1", "10", "2"], ["1", "2", "3"], ["3", "7"]):
        assert match_labels(net, labelled([0, 1], names)).index == {}
    named = Some(classes=[str(i) for i in range(12)])
    assert match_labels(named, labelled([0, 2], ["0", "1", "10", "2"])).index == {0: 0, 2: 10, 1: 1, 3: 2}
    assert "label 9 is none" in match_labels(Some(num_classes=3), labelled([9], [*"0123456789"])).reason


def test_folders_of_numbers_in_another_order_are_told(tmp_path):
    for name in ("0", "1", "2", "10"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    images = spectral.load_images(tmp_path)
    with pytest.warns(SpectralWarning, match=r"'10' is class 2, since classes count in the order of"):
        images.with_classes(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.with_classes([*"abcd"])


def test_numbers_without_names_are_the_networks_own_if_it_has_so_many():
    assert match_labels(CIFAR_NET, labelled([0, 9, None], None)).index == {0: 0, 9: 9}
    found = match_labels(CIFAR_NET, labelled([0, 10], None))
    assert (found.index, found.reason) == ({}, "label 10 is none of the network's 10 classes")


def test_ambiguous_names_match_nothing():
    assert match_names(["crane", "cat"], ["crane", "crane", "cat"]).index == {1: 2}


def test_where_networks_keep_their_names():
    assert find_classes(CIFAR_NET) == CIFAR10_CLASSES
    assert find_classes(Some(config=Some(id2label={0: "LABEL_0", 1: "LABEL_1"}))) is None
    assert find_classes(Some(pretrained_cfg={"label_names": ["a", "b"]})) == ("a", "b")
    assert find_classes(nn.Flatten()) is None


def test_a_network_says_how_many_classes_it_has_by_either_name_of_the_number():
    assert (
        match_labels(Some(n_classes=3), labelled([5], None)).reason
        == "label 5 is none of the network's 3 classes"
    )
    assert match_models(Some(n_classes=3), Some(num_classes=4)).reason == "their classes differ in number"
    assert match_labels(Some(num_classes=True), labelled([5], None)).index == {5: 5}  # a flag counts nothing


def test_names_need_as_many_as_there_are_labels():
    images = spectral.load_images("samples", size=32, limit=10)
    with pytest.raises(SpectralError, match="with_classes: label 8 needs more than 2 names"):
        images.with_classes(["a", "b"])


def test_two_networks_are_matched_by_name_too():
    turned = Some(classes=list(CIFAR10_CLASSES[::-1]))
    assert match_models(CIFAR_NET, turned).index == {i: 9 - i for i in range(10)}
    assert match_models(IMAGENET_NET, IMAGENET_NET).index == {i: i for i in range(1000)}
    assert match_models(CIFAR_NET, Some(num_classes=10)).reason == "only one of them names its classes"
    assert "not person 0" in match_models(Some(classes=[f"person {i}" for i in range(10)]), CIFAR_NET).reason
    assert match_models(nn.Flatten(), nn.Flatten()).index[7] == 7


def test_two_networks_that_dont_say_how_many_classes_they_have_are_asked_for_their_scores():
    silent = nn.Flatten()
    assert match_models(silent, silent, (3, 10)).reason == "their classes differ in number"
    assert match_models(silent, silent, (3, 3)).index == {0: 0, 1: 1, 2: 2}
    assert match_models(CIFAR_NET, silent, (10, 10)).reason == "only one of them names its classes"
    assert match_models(CIFAR_NET, silent).reason == "how many classes one of them has isn't known"


class Answers(nn.Module):
    """Says of an image the class that its red value is: a perfect network of 1000 classes."""

    num_classes = 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(torch.arange(1000) / 999 - x[:, :1].mean((2, 3))).abs() * 1e4


def test_every_measurement_uses_the_rule(tmp_path):
    """Three of ImageNet's classes in folders, a network that is right of two."""
    for number, red in ((10, 10), (500, 500), (990, 3)):
        folder = tmp_path / "some" / SYNSETS[number]
        folder.mkdir(parents=True)
        colour = round(255 * red / 999)
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(folder / "a.png")
    images = spectral.load_images(tmp_path / "some", size=8)
    net = Answers()
    table = spectral.measure(net, images, ("sis",), progress=False)
    wide = table.pivot(index="image", columns="metric", values="value")
    assert sorted(wide["label"]) == [10, 500, 990]
    assert ((wide["prediction"] - wide["label"]).abs() < 3).sum() == 2  # 8 bits are coarser than 1000 classes
    found = spectral.measure_predictions(net, images, (), progress=False)
    assert sorted(found["label"]) == [10, 500, 990]
    hidden = spectral.measure(net, images.with_classes(["a", "b", "c"]), ("sis",), progress=False)
    assert "label" not in set(hidden.loc[hidden["reason"] == "", "metric"])
    (row,) = hidden[hidden["reason"] != ""].to_dict("records")
    assert row["metric"] == "label"
    assert "doesn't name its classes" in row["reason"]
    assert isinstance(spectral.summarize_measurements(hidden), pd.DataFrame)


class Five(nn.Module):
    """A network of five classes that doesn't say so."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[..., ::2, ::2].mean((-1, -2)))


def read_labels(name: str, net: nn.Module, images: Any, **options: Any) -> set[Any]:
    """What the table of an analysis holds as labels."""
    asked = {"measure": ["sis"], "measure_predictions": ["decimate-2"], "measure_robustness": ["fgsm"]}
    chosen = [asked[name]] if name in asked else []
    table = getattr(spectral, name)(net, images, *chosen, preprocessing="none", progress=False, **options)
    labels = table.loc[table["metric"] == "label", "value"] if name == "measure" else table["label"]
    return set(labels.dropna().astype(int))


@pytest.mark.filterwarnings("ignore::spectral.SpectralWarning")
@pytest.mark.parametrize(
    "name",
    ["measure", "measure_stability", "attribute_instability", "measure_predictions", "measure_robustness"],
)
@pytest.mark.parametrize("chosen", [None, lambda output: output[:, :3]])
def test_a_label_beyond_the_scores_that_a_network_gives_is_none_of_its_classes(name, chosen):
    """The network doesn't say how many classes it has; its output, or the user's part of it, does."""
    count = 5 if chosen is None else 3
    fitting = images_of([0, 1, 2, count - 1])
    assert read_labels(name, Five(), fitting, logits=chosen) == {0, 1, 2, count - 1}
    assert read_labels(name, Five(), images_of([0, 1, 2, count]), logits=chosen) == set()


class Named(Dataset):
    """A dataset of torchvision's kind: tensors with numbers, and what the numbers mean."""

    def __init__(self, classes: Any, tensors: bool) -> None:
        self.classes, self.tensors = classes, tensors

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Any, int]:
        picture = Image.new("RGB", (8, 8), (60 * i, 9, 9))
        return (torch.full((3, 8, 8), i / 4) if self.tensors else picture), i % 3


class OneByOne(IterableDataset):
    """The same as a stream, as those of the Hub are where nothing is fetched beforehand."""

    def __init__(self, data: Named, batched: bool = False) -> None:
        self.data, self.classes, self.batched = data, data.classes, batched

    def __iter__(self) -> Iterator[Any]:
        items = (self.data[i] for i in range(len(self.data)))
        return map(default_collate, ([item] for item in items)) if self.batched else items


class Ten(Five):
    classes = CIFAR10_CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)


@pytest.mark.filterwarnings("ignore::spectral.SpectralWarning")
@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data, lambda data: Subset(data, [2, 1, 0, 3]), lambda data: ConcatDataset([data]),
        lambda data: DataLoader(Subset(data, range(4)), batch_size=3),
        lambda data: Subset(Subset(data, range(4)), range(4)), OneByOne,
        lambda data: OneByOne(data, batched=data.tensors),
    ],
    ids=["itself", "subset", "joined", "loader", "part of a part", "stream", "batches"],
)  # fmt: skip
def test_a_dataset_says_what_its_labels_count(wrap, tensors):
    names = ["ship", "cat", "frog"]
    assert read_labels("measure", Ten(), wrap(Named(names, tensors))) == {8, 3, 6}
    assert read_labels("measure_predictions", Ten(), wrap(Named(("a", "b", "c"), tensors))) == set()
    assert read_labels("measure_stability", Ten(), wrap(Named(None, tensors))) == {
        0,
        1,
        2,
    }  # the network's own


def test_a_dataset_with_numbers_of_the_users_own_has_no_names():
    own = Named(["ship", "cat", "frog"], False)
    own.target_transform = lambda label: label
    assert read_labels("measure", Ten(), own) == {0, 1, 2}
    few = Named(["ship", "cat"], False)  # fewer than the labels need
    assert read_labels("measure", Ten(), few) == {0, 1, 2}


@pytest.mark.parametrize(
    "name", ["measure_stability", "attribute_instability", "measure_predictions", "measure_robustness"]
)
def test_labels_that_are_left_out_are_warned_of(name):
    images = Named(["ship", "cat", "monkey"], False)
    with pytest.warns(
        SpectralWarning, match=r"labels are left out: the network has 2 .* \(not monkey\)"
    ) as said:
        assert read_labels(name, Ten(), images) == {8, 3}
    assert len([one for one in said if "left out" in str(one.message)]) == 1
    with pytest.warns(SpectralWarning, match="there is no accuracy: the network has 0 of the labels' 3"):
        assert read_labels(name, Ten(), Named(["a", "b", "c"], False)) == set()


def test_a_trade_off_lacks_accuracy_for_the_reason_of_measure_and_warns_of_nothing_again(tmp_path):
    for number in range(6):  # one class more than the network gives scores of
        (tmp_path / "some" / f"class{number}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (40 * number, 0, 90)).save(tmp_path / "some" / f"class{number}" / "a.png")
    net, images = Five(), spectral.load_images(tmp_path / "some", size=16)
    known = {"preprocessing": "none", "progress": False}
    measured = {"net": spectral.measure(net, images, ("sis",), **known)}
    stability = {"net": spectral.measure_stability(net, images, **known)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectralWarning)  # "its normalisation isn't known": it was told
        (row,) = weigh_models({"net": net}, {"net": images}, measured, stability).to_dict("records")
    said = measured["net"].loc[measured["net"]["metric"] == "label", "reason"].unique()
    assert list(said) == [row["accuracy_reason"]]
    assert row["n_labelled"] == 0


def images_of(labels: list[int]) -> Any:
    pixels = torch.linspace(0, 1, 4 * 3 * 16 * 16).view(4, 3, 16, 16)
    return TensorDataset(pixels, torch.tensor(labels))
