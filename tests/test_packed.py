"""Images in few files: tar shards, Parquet, datasets of the Hub; the same pixels as from a folder."""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_measurement import tiny

import spectral
from spectral.data import adapt_images
from spectral.data.pages import measure_unfolded
from spectral.errors import SpectralError, SpectralWarning

COUNT = 7


def encode(number: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, images: list[Any], labels: list[int], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    if names is not None:
        facts = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(facts).encode()})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain").mkdir()
    for i in range(COUNT):
        (tmp_path / "plain" / f"{i}.jpg").write_bytes(encode(i))
    return tmp_path / "plain"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    files: dict[str, bytes] = {}
    for i in range(COUNT):
        files[f"{i}.jpg"] = encode(i)
        files |= (
            {f"{i}.cls": f"{i % 3}\n".encode()}
            if i % 2
            else {f"{i}.json": json.dumps({"label": i % 3}).encode()}
        )
    return write_tar(tmp_path / "shards" / "train-000.tar", files)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    images = [{"bytes": encode(i), "path": f"{i}.jpg"} for i in range(COUNT)]
    return write_parquet(
        tmp_path / "train.parquet", images, [i % 3 for i in range(COUNT)], ["ant", "bee", "cow"]
    )


def stack(images: Any) -> torch.Tensor:
    return torch.cat([batch for _, batch in images.batches(2)])


class TestSamePixels:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_as_from_a_folder(self, folder, tar, parquet, workers):
        expected = stack(spectral.load_images(folder, size=16))
        for path in (tar, parquet):
            images = spectral.load_images(path, size=16, workers=workers)
            torch.testing.assert_close(stack(images), expected, rtol=0, atol=0)
            assert images.labels == [i % 3 for i in range(COUNT)]
            assert len(set(images.ids)) == COUNT
            assert images[0].shape == (3, 16, 16)

    def test_names_labels_and_sizes(self, tar, parquet):
        images = spectral.load_images(tar)
        assert images.ids[:2] == ["train-000.tar/0.jpg", "train-000.tar/1.jpg"]
        assert images.items[0].size == (20, 24)
        assert images.classes is None
        assert images.source == "tar:train-000.tar"
        rows = spectral.load_images(parquet)
        assert rows.classes == ["ant", "bee", "cow"]
        assert rows.ids[-1] == "train.parquet/000006"

    def test_several_files_a_pattern_and_a_folder_of_them(self, tar):
        write_tar(tar.with_name("train-001.tar"), {"x.png": encode(50, "PNG"), "x.cls": b"2"})
        for source in (tar.parent, str(tar.parent / "*.tar"), [tar, tar.with_name("train-001.tar")]):
            images = spectral.load_images(source)
            assert len(images) == COUNT + 1
            assert images.ids[-1] == "train-001.tar/x.png"
            assert images.source == "tar:shards"

    def test_shards_are_found_as_images_are(self, tar, tmp_path):
        """Behind a link to their folder; what a Mac writes beside each is none."""
        (tar.parent / f"._{tar.name}").write_bytes(b"\0\5\26\7")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "part").symlink_to(tar.parent)
        assert len(spectral.load_images(tmp_path / "set")) == COUNT

    def test_a_limit_is_spread_over_the_classes(self, parquet):
        assert sorted(map(int, spectral.load_images(parquet, limit=3).labels)) == [0, 1, 2]

    def test_plain_bytes_and_no_labels(self, tmp_path):
        pq.write_table(
            pa.table({"img": [encode(i) for i in range(3)], "caption": ["a"] * 3}), tmp_path / "a.parquet"
        )
        images = spectral.load_images(tmp_path / "a.parquet")
        assert images.labels == [None] * 3

    def test_a_measurement_of_a_tar_is_continued(self, tar, tmp_path):
        options = {"metrics": ("avr",), "progress": False, "preprocessing": "none", "out": tmp_path / "run"}
        first = spectral.measure(tiny(), tar, **options)
        again = spectral.measure(tiny(), spectral.load_images(tar), **options)
        assert again.attrs["resumed"] == COUNT
        assert again.equals(first)


class TestWhichFiles:
    @pytest.mark.parametrize("facts", [{"caption": "a cat"}, {"label": "cat"}, {"label": 7}, {"label": None}])
    @pytest.mark.parametrize("first", ["cls", "json"])
    def test_the_class_beside_facts_is_the_label(self, tmp_path, facts, first):
        own = {"cls": b"3", "json": json.dumps(facts).encode(), "png": encode(0, "PNG")}
        endings = sorted(own, key=lambda ending: ending != first)
        path = write_tar(tmp_path / "a.tar", {f"0.{ending}": own[ending] for ending in endings})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert spectral.load_images(path).labels == [3]

    def test_a_label_belongs_to_the_place_that_its_file_is_unpacked_to(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", {"./b/0.png": encode(0, "PNG"), "b/0.cls": b"4"})
        assert spectral.load_images(path).labels == [4]

    @pytest.mark.parametrize("again", ["a.png", "./a.png"])
    def test_an_update_within_a_tar_is_read_in_place_of_what_it_updates(self, tmp_path, again):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as file:
            for name, content in (
                ("a.png", encode(0, "PNG")), ("a.cls", b"1"), ("b.png", encode(2, "PNG")),
                (again, encode(1, "PNG")), ("a.cls", b"4"),
            ):  # fmt: skip
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        with pytest.warns(
            SpectralWarning, match=r"a\.tar: of 1 name.* several images, as .*a\.png; the last"
        ):
            images = spectral.load_images(path)
        assert images.ids == ["a.tar/b.png", f"a.tar/{again}"]
        (tmp_path / "plain").mkdir()
        write(tmp_path / "plain" / "1.png", encode(1, "PNG"))
        assert torch.equal(images[1], spectral.load_images(tmp_path / "plain")[0])

    @pytest.mark.parametrize(
        ("names", "read"),
        [
            (["data/train-00000-of-00001", "data/test-00000-of-00001"], ["data/test-00000-of-00001"]),
            (["train-00000-of-00001", "validation-00000-of-00001"], ["validation-00000-of-00001"]),
            (["set-train-0000", "set-val-0000", "set-val-0001"], ["set-val-0000", "set-val-0001"]),
            (["train/0000", "test/0000"], ["test/0000"]),
        ],
    )
    def test_of_several_parts_of_a_data_set_the_test_images_are_read(self, tmp_path, names, read):
        for number, name in enumerate(names):
            write_parquet(tmp_path / f"{name}.parquet", [{"bytes": encode(number), "path": ""}], [number])
        with pytest.warns(SpectralWarning, match=f"{len(read)} of {len(names)} files are read, as "):
            images = spectral.load_images(tmp_path)
        assert images.labels == [names.index(name) for name in read]
        every = spectral.load_images([tmp_path / f"{name}.parquet" for name in names])
        assert len(every) == len(names)

    def test_of_a_tar_with_several_parts_the_test_images_are_read(self, tmp_path):
        members = {f"set/{part}/{part}.{ending}": content for part in ("train", "test")
                   for ending, content in (("png", encode(1, "PNG")), ("cls", b"4"))}  # fmt: skip
        with pytest.warns(SpectralWarning, match=r"a\.tar: 1 of 2 images are read, those in test/, since"):
            images = spectral.load_images(write_tar(tmp_path / "a.tar", members))
        assert (images.ids, images.labels) == (["a.tar/set/test/test.png"], [4])
        several = [f"{name}/1.png" for name in ("train", "test", "bus")]
        path = write_tar(tmp_path / "b.tar", {name: encode(i, "PNG") for i, name in enumerate(several)})
        assert len(spectral.load_images(path)) == 3

    @pytest.mark.parametrize("names", [["train-0", "train-1"], ["test-0", "b"], ["a", "b"]])
    def test_files_that_are_of_one_part_are_all_read(self, tmp_path, names):
        for name in names:
            write_parquet(tmp_path / f"{name}.parquet", [{"bytes": encode(1), "path": ""}], [1])
        assert len(spectral.load_images(tmp_path)) == 2


class TestRefusals:
    def test_an_image_that_is_broken_is_named(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", {"ok.jpg": encode(1), "cut.jpg": encode(2)[:200]})
        with pytest.warns(SpectralWarning, match=r"tar:a\.tar: skipped 1 broken image file.*a\.tar/cut\.jpg"):
            images = spectral.load_images(path)
        assert images.ids == ["a.tar/ok.jpg"]

    def test_rows_that_are_written_over_without_a_change_of_time_or_length(self, tmp_path):
        images = [{"bytes": encode(i, "BMP"), "path": ""} for i in range(3)]
        path = write_parquet(tmp_path / "a.parquet", images, [0, 1, 2])
        rows = spectral.load_images(path)
        assert len(list(rows.batches(1))) == 3
        before, pixels = path.stat(), encode(0, "BMP")[-64:]
        content = path.read_bytes()
        assert pixels in content
        path.write_bytes(content.replace(pixels, pixels[::-1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(SpectralError, match=r"image a\.parquet/000000 .*has changed since"):
            list(rows.batches(1))

    def test_a_file_that_changes_after_loading(self, tar, parquet):
        images, rows = spectral.load_images(tar), spectral.load_images(parquet)
        content = tar.read_bytes()
        at = content.index(encode(3)) + 400
        tar.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(SpectralError, match=r"image train-000\.tar/3\.jpg .*has changed since"):
            images[3]
        write_parquet(parquet, [{"bytes": encode(9), "path": ""}] * 2, [0, 0])
        with pytest.raises(SpectralError, match=r"image train\.parquet/000001 .*has changed since"):
            rows[1]
        with pytest.raises(SpectralError, match=r"image train\.parquet/000006 .*no longer"):
            rows[6]

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda f: write_tar(f / "a.tar.gz", {"x.jpg": encode(1)}, "w:gz"), "is compressed.*unpack it"),
            (lambda f: write_tar(f / "a.tar", {"x.txt": b"1"}), "no images in"),
            (lambda f: write(f / "a.tar", b"nothing of the kind"), "can't be read as a tar"),
            (lambda f: write(f / "a.parquet", b"PAR1 or not"), "can't be read as Parquet"),
            (lambda f: write_table(f / "a.parquet", {"x": [1, 2]}), "no column of encoded images; expected"),
            (
                lambda f: write_table(f / "a.parquet", {"x": [b"1"], "y": [b"2"]}),
                "the columns x, y of encoded images",
            ),
            (
                lambda f: write_parquet(f / "a.parquet", [{"bytes": None, "path": "x"}], [0]),
                "no bytes of its own",
            ),
        ],
    )
    def test_what_holds_no_images(self, make, why, tmp_path):
        path = make(tmp_path)
        with pytest.raises(SpectralError, match=why) as failure:
            spectral.load_images(path)
        assert "\n" not in str(failure.value)

    def test_kinds_together(self, tar, parquet, folder):
        with pytest.raises(SpectralError, match="of one kind"):
            spectral.load_images([tar, parquet])
        with pytest.raises(SpectralError, match=r"train-000\.tar holds many images and 0\.jpg doesn't"):
            spectral.load_images([folder / "0.jpg", tar])

    def test_files_that_name_their_classes_otherwise(self, parquet):
        other = write_parquet(
            parquet.with_name("z.parquet"), [{"bytes": encode(1), "path": ""}], [0], ["dog"]
        )
        with pytest.raises(
            SpectralError, match=r"z\.parquet' names its classes otherwise than train\.parquet"
        ):
            spectral.load_images([parquet, other])


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def pack(header: tarfile.TarInfo, content: bytes = b"", layout: int = tarfile.GNU_FORMAT) -> bytes:
    return header.tobuf(layout) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def make_header(kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    header = tarfile.TarInfo("a.png")
    header.type, header.size = kind, size
    return header


def make_pax(**records: str) -> bytes:
    header = make_header(size=9)
    header.pax_headers = records
    return pack(header, b"\x89PNG\r\n\x1a\n.", tarfile.PAX_FORMAT)


HOSTILE = {
    "a size beyond all": make_pax(size="9" * 20),
    "a size below 0": make_pax(size="-5"),
    "sparse, of no map": make_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "sparse, of 2**60 bytes": make_pax(**{"GNU.sparse.map": "0,1,5", "GNU.sparse.size": str(2**60)}),
    "a name of 8 GiB": pack(make_header(kind=b"L", size=2**33), b"x" * 2000),
    "records of 4 GiB": pack(make_header(kind=b"x", size=2**32), b"x" * 2000, tarfile.USTAR_FORMAT),
    "names of names": pack(make_header(kind=b"L", size=5), b"name") * 3000,
    "a record of no length": pack(make_header(kind=b"x", size=9), b"0 path=a\n", tarfile.USTAR_FORMAT),
    "a link to itself": pack(make_header(kind=tarfile.LNKTYPE)),
    "a device": pack(make_header(kind=tarfile.CHRTYPE)),
    "half a header": pack(make_header())[:300],
    "1 TiB": pack(make_header(size=2**40)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tars(content, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SpectralError) as caught:
        spectral.load_images(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB
    assert [one.name for one in tmp_path.iterdir()] == ["a.tar"]


def test_parquet_that_claims_more_than_it_may(tmp_path):
    pq.write_table(pa.table({"image": pa.nulls(10**6, pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(SpectralError, match="claims 1000000 rows in"):
        spectral.load_images(tmp_path / "a.parquet")


def test_parquet_pages_that_unfold_to_more_than_the_footer_says(tmp_path):
    """Arrow makes room for what a page claims, and unfolds a page that isn't what the footer says of it."""
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [encode(i, "PNG") + bytes(2**20) for i in range(4)]}), path,
        compression="zstd", use_dictionary=False, data_page_size=1, write_batch_size=1,
    )  # fmt: skip
    assert len(spectral.load_images(path)) == 4  # as it is
    content = path.read_bytes()
    for i in range(4):
        size = 4 + len(encode(i, "PNG")) + 2**20 + 6  # and of levels, which say that the value is there
        content = content.replace(_zigzag(size), _zigzag(130 * 2**20))
    path.write_bytes(content)
    with pytest.raises(SpectralError, match="pages of image unfold to up to 520 MiB, more than 384"):
        spectral.load_images(path)
    pq.write_table(
        pa.table({"image": [bytes(2**20) + encode(i, "PNG") for i in range(500)]}), path,
        column_encoding={"image": "DELTA_BYTE_ARRAY"}, use_dictionary=False,
    )  # fmt: skip
    assert path.stat().st_size < 2**20
    with pytest.raises(SpectralError, match="pages of image unfold to up to"):
        spectral.load_images(path)


def _zigzag(number: int) -> bytes:
    """A number as Thrift's compact protocol has it."""
    number, found = number << 1, bytearray()
    while number:
        found.append(number & 127 | (128 if number >> 7 else 0))
        number >>= 7
    return bytes(found)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("options", [{}, {"write_page_index": True}, {"write_page_checksum": True},
                                     {"write_statistics": False}, {"compression": "none"}])  # fmt: skip
def test_pages_unfold_to_what_the_footer_says_of_an_honest_file(version, options, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [bytes([i]) * 3000 for i in range(50)] + [None], "label": range(51)})
    pq.write_table(
        table,
        path,
        data_page_version=version,
        row_group_size=20,
        data_page_size=9000,
        write_batch_size=2,
        **options,
    )
    facts = pq.read_metadata(path)
    for group in range(facts.num_row_groups):
        for column in range(2):
            chunk = facts.row_group(group).column(column)
            with path.open("rb") as file:
                found = measure_unfolded(file, chunk)
            assert 0 < found <= chunk.total_uncompressed_size < found + 2000 + 6100 * 20  # with headers


@pytest.mark.parametrize("nested", [False, True])
def test_an_image_that_is_in_a_file_many_times_is_in_memory_once(nested, tmp_path):
    picture = encode(0, "PNG") + bytes(2**22)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if nested else pa.binary()
    cells = [{"bytes": picture, "path": ""} if nested else picture] * 50
    table = pa.table({"image": pa.array(cells, kind)})
    pq.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=2**30, data_page_size=2**30)
    del table, cells
    before = pa.total_allocated_bytes()
    images = spectral.load_images(tmp_path / "a.parquet", limit=2)
    assert [one.shape for one in images] == [(3, 20, 24)] * 2
    assert pa.total_allocated_bytes() - before < 10 * len(picture)


class HubDataset:
    """Gives what a `datasets.Dataset` gives: dictionaries with PIL images, and features that name labels."""

    @property
    def features(self) -> Any:
        return {"image": None, "label": SimpleNamespace(names=["ant", "bee", "cow"])}

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= COUNT:
            raise IndexError(index)
        return {"image": Image.open(io.BytesIO(encode(index))), "label": index % 3}


class Tensors(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 16, 16), index / COUNT), index % 3


class TestDatasets:
    def test_one_of_the_hub(self, folder):
        images = adapt_images(HubDataset(), "test")
        torch.testing.assert_close(stack(images), stack(spectral.load_images(folder)), rtol=0, atol=0)
        assert images.classes == ["ant", "bee", "cow"]
        assert images.labels == [i % 3 for i in range(COUNT)]

    @pytest.mark.parametrize("make", [HubDataset, Tensors])
    def test_workers_read_the_same(self, make: Callable[[], Any]):
        options = {"metrics": ("avr",), "batch_size": 2, "progress": False, "preprocessing": "none"}
        options |= {"preprocessing": None} if make is Tensors else {}
        here, there = (spectral.measure(tiny(), make(), workers=n, **options) for n in (0, 2))
        assert here.equals(there)

    def test_workers_are_those_of_the_loader(self):
        loader = torch.utils.data.DataLoader(Tensors(), batch_size=3, num_workers=2)
        assert adapt_images(loader, "test").loading.workers == 2
        assert adapt_images(Tensors(), "test").loading.workers == 0


def test_a_parquet_file_in_a_folder_whose_name_is_no_utf8_is_read_like_others(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    pq.write_table(pa.table({"value": [1.0]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").rename(folder / "rows.parquet")
    with pytest.raises(SpectralError, match=r"rows\.parquet"):
        spectral.load_images(folder)


def write_odd(folder: Path) -> Path:
    """Write images as people have them: gray, with a palette, for print, of 16 bits, turned, moving, cut."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    moving: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(180)]}
    for name, mode in (("gray.png", "L"), ("palette.png", "P"), ("print.jpg", "CMYK"), ("clear.png", "RGBA"),
                       ("bits.png", "1"), ("both.png", "LA"), ("plain.tif", "RGB")):  # fmt: skip
        picture.convert(mode).save(folder / name)
    Image.fromarray(rng.integers(0, 65536, (20, 28)).astype(np.uint16)).save(folder / "deep.png")
    picture.save(folder / "turned.jpg", exif=turned)
    picture.save(folder / "moving.gif", **moving)
    picture.save(folder / "moving.webp", lossless=True, **moving)
    (folder / "cut.jpg").write_bytes(encode(1)[:300])
    return folder


@pytest.mark.filterwarnings("ignore::spectral.errors.SpectralWarning")
def test_odd_images_are_the_same_from_every_source(tmp_path):
    folder = write_odd(tmp_path / "odd")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    known = spectral.load_images(folder, size=16)
    assert [name for name, _ in known.skipped] == ["cut.jpg"]
    assert len(known) == len(files) - 1

    class Opened:
        def __len__(self) -> int:
            return len(known)

        def __getitem__(self, i: int) -> Any:
            return {"image": Image.open(folder / known.ids[i]), "label": 0}

    write_tar(tmp_path / "odd.tar", files)
    write_parquet(
        tmp_path / "odd.parquet", [{"bytes": content} for content in files.values()], [0] * len(files)
    )
    sets = [
        spectral.load_images(tmp_path / "odd.tar", size=16),
        spectral.load_images(tmp_path / "odd.parquet", size=16),
        adapt_images(Opened(), "test").resized(16),
        adapt_images([Image.open(folder / name) for name in known.ids], "test").resized(16),
    ]
    for images in sets:
        torch.testing.assert_close(torch.stack(list(images)), torch.stack(list(known)), rtol=0, atol=0)
