"""Model files come back as they went, or not at all."""

import json
import struct

import pytest
import safetensors.torch
import torch

from napari_attunet.errors import ModelError
from napari_attunet.header import HEADER_KEY, read_spec, write_header
from napari_attunet.library import Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.networks.gates import Gate
from napari_attunet.schema import to_json
from napari_attunet.spec import GateSpec, ModelSpec, NetworkSpec


def make_model(name="small", version=1, **options):
    network = NetworkSpec(**{"features": (2, 3), **options})
    return Model.fresh(ModelSpec(name=name, version=version, network=network), seed=5)


def same_weights(a, b):
    a, b = a.network.state_dict(), b.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", [None, *sorted(Gate.kinds)])
@pytest.mark.parametrize("ndim", [2, 3])
def test_round_trip(tmp_path, kind, ndim):
    gate = kind and GateSpec(kind=kind)
    model = make_model(ndim=ndim, gate=gate, deep_supervision=True, features=(2, 3, 4))
    path = save_model(model, tmp_path / "deeper" / "m.safetensors")
    loaded = load_model(path)
    assert loaded.spec == model.spec
    assert same_weights(loaded, model)
    assert not loaded.network.training
    assert all(p.requires_grad for p in loaded.network.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_equal_models_are_equal_files(tmp_path):
    files = {
        save_model(make_model(), tmp_path / f"{i}.safetensors").read_bytes()
        for i in range(8)
    }
    assert len(files) == 1


def test_half_precision_halves_the_file(tmp_path):
    model = make_model(features=(32, 64))
    whole = save_model(model, tmp_path / "whole.safetensors").stat().st_size
    half = save_model(model, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.6 * whole
    loaded = load_model(half).network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, atol=1e-3, rtol=1e-3)


def test_fresh_is_reproducible_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    a, b = make_model(), make_model()
    assert same_weights(a, b)
    assert torch.equal(torch.rand(3), expected)


def write(path, metadata, tensors=None):
    tensors = tensors or {"a": torch.zeros(1)}
    safetensors.torch.save_file(tensors, path, metadata)


def truncated(path):
    save_model(make_model(), path)
    path.write_bytes(path.read_bytes()[:-40])


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def newer(path):
    write(path, {HEADER_KEY: json.dumps({"format": 99, "spec": {}})})


def newer_field(path):
    spec = json.loads(to_json(make_model().spec)) | {"wings": 2}
    write(path, {HEADER_KEY: json.dumps({"format": 1, "spec": spec})})


def damaged_header(path):
    write(path, {HEADER_KEY: '{"format": 1'})


def other_weights(path):
    write(path, write_header(make_model().spec))


def other_shape(path):
    weights = dict(make_model().network.state_dict())
    weights["head.bias"] = torch.zeros(7)
    write(path, write_header(make_model().spec), weights)


WRONG = {
    "missing": (lambda path: None, "no model file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "text": (lambda path: path.write_text("hello " * 100), "damaged"),
    "pickle": (lambda path: torch.save({"a": 1}, path), "damaged"),
    "truncated": (truncated, "damaged|incomplete"),
    "huge header": (huge_header, "damaged"),
    "foreign": (lambda path: write(path, {"format": "pt"}), "no specification"),
    "newer format": (newer, "update"),
    "damaged header": (damaged_header, "damaged"),
    "newer field": (newer_field, "newer version"),
    "other weights": (other_weights, "don't belong"),
    "other shape": (other_shape, r"head\.bias is \(7,\)"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, make, message):
    path = tmp_path / "wrong.safetensors"
    make(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "wrong.safetensors" in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(make_model(features=(4, 5)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_suffix_is_asked_for(tmp_path):
    with pytest.raises(ModelError, match=r"\.safetensors"):
        save_model(make_model(), tmp_path / "m.pth")


# --- the library ------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "models")
    for version in (1, 2, 10):
        model = make_model("mine", version, features=(2, 2 + version))
        save_model(model, library.path_for(model.spec))
    return library


def own(library):
    return [e.spec.key for e in library.entries() if not e.bundled]


def test_models_are_found_by_name_and_version(library):
    assert own(library) == ["mine@1", "mine@2", "mine@10"]
    assert load_model("mine", library).spec.version == 10
    assert load_model("mine@2", library).spec.version == 2
    assert library.next_version("mine") == 11
    assert library.next_version("new") == 1


def test_a_miss_lists_what_there_is(library):
    with pytest.raises(ModelError, match="mine@10"):
        load_model("yours", library)


def test_a_damaged_file_hides_no_other(library):
    bad = library.folder / "bad.safetensors"
    bad.write_bytes(b"x")
    assert len(own(library)) == 3
    assert list(library.damaged()) == [bad]


def test_removing(library):
    library.remove("mine@2")
    assert own(library) == ["mine@1", "mine@10"]
    with pytest.raises(ModelError, match="which version"):
        library.remove("mine")
    assert own(library) == ["mine@1", "mine@10"]


def test_bundled_models_are_there_and_stay(library):
    bundled = [e for e in library.entries() if e.bundled]
    assert {e.spec.name for e in bundled} == {
        "nuclei-fluorescence",
        "nuclei-histology",
    }
    for entry in bundled:
        assert entry.path.stat().st_size < 5_000_000
        with pytest.raises(ModelError, match="stays"):
            library.remove(entry.spec.key)
        assert load_model(entry.path).spec == read_spec(entry.path)


def test_no_folder_no_models(tmp_path):
    assert own(Library(tmp_path / "nowhere")) == []
