"""Initial weights: from torchvision's and timm's downloads, served on loopback, and from files; nothing is skipped."""

from __future__ import annotations

import hashlib
import importlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from trueport import models
from trueport.models.brought import IMAGENET
from trueport.pipeline.initial import Initial, expected_normalisation, load_initial
from trueport.pipeline.recipe import ModelSection
from trueport.pipeline.resolve import new_model
from trueport.runtime.errors import MissingError, UsageError


def loaded(
    arch: str, init: str, classes: int = 1000, channels: int = 3, **args: Any
) -> tuple[nn.Module, Initial, list[str]]:
    """The module after loading, what was answered and what was said."""
    section, said = ModelSection(arch=arch, init=init, args=args), list[str]()
    module = new_model(section, classes, channels)
    initial = load_initial(module, section, models.spec(arch), classes, said.append)
    return module, initial, said


def same(module: nn.Module, expected: dict[str, Tensor], besides: tuple[str, ...] = ()) -> bool:
    found = module.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in expected.items() if name not in besides)


# Files


@pytest.fixture
def lenet() -> dict[str, Tensor]:
    return models.create("lenet", num_classes=7).state_dict()


def test_fresh_weights_are_left_as_they_are() -> None:
    module = models.create("lenet", num_classes=7)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert load_initial(module, ModelSection(), models.spec("lenet"), 7) == Initial("fresh", "", (), None)
    assert same(module, before)


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "parallel", "compiled", "legacy"])
def test_files_of_all_forms_are_read(form: str, lenet: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        safetensors.torch.save_file(lenet, file)
    elif form == "legacy":
        torch.save(lenet, file, _use_new_zipfile_serialization=False)
    else:
        prefix = {"parallel": "module.", "compiled": "_orig_mod."}.get(form, "")
        state: dict[str, Any] = {prefix + name: tensor for name, tensor in lenet.items()}
        torch.save({form: state, "epoch": 3} if form in ("state_dict", "model") else state, file)
    module, initial, said = loaded("lenet", str(file), 7)
    assert same(module, lenet)
    assert initial.source == str(file)
    assert initial.fresh == ()
    assert initial.normalisation is None
    assert said[-1] == f"initial weights: {file}"
    assert any("left out" in line for line in said) == (form in ("parallel", "compiled"))


def test_the_digest_is_of_the_tensors_not_of_the_file(lenet: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(lenet, tmp_path / "a.safetensors")
    torch.save(lenet, tmp_path / "a.pth")
    other = lenet | {"fc3.bias": lenet["fc3.bias"] + 1}
    torch.save(other, tmp_path / "b.pth")
    a, b, c = (loaded("lenet", str(tmp_path / name), 7)[1].sha256 for name in ("a.safetensors", "a.pth", "b.pth"))
    assert a == b != c
    assert len(a) == 64


def test_a_head_of_other_classes_starts_fresh_and_is_told(lenet: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(lenet, tmp_path / "a.pth")
    torch.manual_seed(5)
    fresh = models.create("lenet", num_classes=16, channels=3).state_dict()["fc3.weight"]  # conv1 has 16 maps too
    torch.manual_seed(5)
    module, initial, said = loaded("lenet", str(tmp_path / "a.pth"), 16)
    assert initial.fresh == ("fc3.weight", "fc3.bias")
    assert same(module, lenet, initial.fresh)
    assert torch.equal(module.state_dict()["fc3.weight"], fresh)
    assert said[-1] == "the weights know 7 classes, the data has 16: fc3.weight, fc3.bias start fresh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc2.weight": None, "fc2.bias": None}, r"2 missing \(fc2.weight, fc2.bias\)$"),
        ({"extra": torch.zeros(1)}, r"1 that the network does not have \(extra\)$"),
        ({"fc1.bias": torch.zeros(3)}, r"1 of another shape \(fc1.bias: expected \(120,\), found \(3,\)\)$"),
        ({f"extra{index}": torch.zeros(1) for index in range(5)}, r"5 that .* \(extra0, extra1, extra2 and 2 more\)$"),
        # The head is not the only one that differs: then it is no other number of classes, but another network.
        ({"fc3.bias": torch.zeros(9), "fc3.weight": torch.zeros(9, 84), "fc2.bias": torch.zeros(9)}, "3 of another"),
    ],
)
def test_any_other_mismatch_is_listed_and_refused(
    change: dict[str, Tensor | None], message: str, lenet: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = {name: tensor for name, tensor in (lenet | change).items() if tensor is not None}
    torch.save(changed, tmp_path / "a.pth")
    module = models.create("lenet", num_classes=7)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    section = ModelSection(init=str(tmp_path / "a.pth"))
    with pytest.raises(UsageError, match=message):
        load_initial(module, section, models.spec("lenet"), 7)
    assert same(module, before)


def test_grey_pictures_are_refused_by_weights_for_colour(lenet: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(lenet, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"for colour pictures.* set preprocessing.mode=RGB"):
        loaded("lenet", str(tmp_path / "a.pth"), 7, channels=1)


class Planted:
    """What a pickle would run when it is loaded carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("planted"),)


def test_a_pickle_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc1.weight": Planted()}, "evil.pth")
    with pytest.raises(UsageError, match=r"can't read evil.pth, expected safetensors"):
        loaded("lenet", "evil.pth")
    assert not Path("planted").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"nothing", "can't read"),
        ("a.pth", b"nothing", "can't read"),
        ("a.pth", b"", "can't read"),
        ("list.pth", [torch.zeros(2)], "holds no state dict"),
        ("numbers.pth", {"a": 3}, "holds no state dict"),
        ("empty.pth", {}, "holds no state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(name: str, content: object, message: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UsageError, match=message) as refused:
        loaded("lenet", str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"there is no file imagnet: expected model.init to be imagenet or a file"):
        loaded("lenet", "imagnet")


# Downloads


@dataclass
class Server:
    """Files on loopback, and what was asked for."""

    folder: Path
    url: str
    asked: list[str]

    def put(self, state: dict[str, Tensor], name: str, digits: str = "") -> str:
        """Serve a state dict under the name that its checksum demands, or another; its address."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        name = f"{name}-{digits or hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
        (self.folder / name).write_bytes(buffer.getvalue())
        return f"{self.url}/{name}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder, asked = tmp_path / "served", list[str]()
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        yield Server(folder, f"http://127.0.0.1:{http.server_port}", asked)
        http.shutdown()
        thread.join()


@pytest.fixture
def resnet18() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state: dict[str, Tensor] = torchvision.models.resnet18().state_dict()
    return state


def publish(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Have torchvision's entry point to an address of ours."""
    entry = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(entry.value, "url", url)


@pytest.mark.parametrize("arch", ["resnet18", "torchvision/resnet18"])
def test_imagenet_weights_are_downloaded_once_and_keep_their_classes_or_not(
    arch: str,
    server: Server,
    resnet18: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(monkeypatch, "resnet18", server.put(resnet18, "resnet18"))
    module, initial, said = loaded(arch, "imagenet")
    assert same(module, resnet18)
    assert initial.fresh == ()
    assert initial.normalisation == IMAGENET
    assert initial.source == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert capsys.readouterr().out == ""  # results are printed there

    module, again, said = loaded(arch, "imagenet", classes=5)
    assert again.fresh == ("fc.weight", "fc.bias")
    assert said[-1] == "the weights know 1000 classes, the data has 5: fc.weight, fc.bias start fresh"
    assert same(module, resnet18, again.fresh)
    assert again.sha256 == initial.sha256
    assert len(server.asked) == 1


def test_the_same_weights_answer_alike_in_ours_and_in_torchvisions(
    server: Server, resnet18: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "resnet18", server.put(resnet18, "resnet18"))
    picture = torch.rand(2, 3, 64, 64)
    ours, theirs = (loaded(arch, "imagenet")[0].eval()(picture) for arch in ("resnet18", "torchvision/resnet18"))
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_arguments_that_make_another_network_of_the_same_shapes_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "resnet50", server.put(torchvision.models.resnet50().state_dict(), "resnet50"))
    with pytest.raises(UsageError, match="resnet50 with stride_in = '1x1' is another network"):
        loaded("resnet50", "imagenet", stride_in="1x1")
    assert loaded("resnet50", "imagenet", zero_init=True)[1].fresh == ()


def test_auxiliary_classifiers_of_googlenet_start_fresh(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    googlenet = torchvision.models.googlenet(init_weights=False).state_dict()
    publish(monkeypatch, "googlenet", server.put(googlenet, "googlenet"))
    module, initial, said = loaded("torchvision/googlenet", "imagenet", classes=5)
    assert {name.partition(".")[0] for name in initial.fresh} == {"aux1", "aux2", "fc"}
    assert same(module, {name: tensor for name, tensor in googlenet.items() if name.startswith("inception")})
    assert said[-1].startswith("not among the weights: aux1.")
    assert initial.normalisation == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # transform_input is off
    section = ModelSection(arch="torchvision/googlenet", init="imagenet", args={"transform_input": True})
    assert expected_normalisation(section, models.spec(section.arch)) == IMAGENET
    assert loaded("torchvision/googlenet", "imagenet", classes=5, aux_logits=False)[1].fresh == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("arch", ["resnet18", "torchvision/resnet18"])
def test_a_wrong_checksum_is_a_clear_error_and_nothing_is_kept(
    arch: str, server: Server, resnet18: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "resnet18", server.put(resnet18, "resnet18", digits="0123abcd"))
    with pytest.raises(MissingError, match=r'came out damaged, invalid hash value .expected "0123abcd"'):
        loaded(arch, "imagenet")
    assert not [file for file in Path(torch.hub.get_dir()).rglob("*") if file.is_file()]


def test_a_damaged_cache_is_found(server: Server, resnet18: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "resnet18", server.put(resnet18, "resnet18"))
    loaded("resnet18", "imagenet")
    (cached,) = (Path(torch.hub.get_dir()) / "checkpoints").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MissingError, match="is damaged: remove it"):
        loaded("resnet18", "imagenet")
    middle = len(whole) // 2
    cached.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(MissingError, match="is damaged"):
        loaded("resnet18", "imagenet")


@pytest.mark.parametrize("arch", ["resnet18", "torchvision/resnet18"])
def test_no_connection_is_a_clear_error(arch: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "resnet18", "http://127.0.0.1:1/resnet18-01234567.pth")
    with pytest.raises(
        MissingError, match=r"can't download http.*refused.*bring the machine online, or download"
    ) as no:
        loaded(arch, "imagenet")
    assert "\n" not in str(no.value)
    publish(monkeypatch, "resnet18", f"{server.url}/resnet18-01234567.pth")
    with pytest.raises(MissingError, match=r"can't download .*, File not found: bring"):
        loaded(arch, "imagenet")


@pytest.mark.parametrize("arch", ["lenet", "alexnet", "vgg_c", "resnet20"])
def test_architectures_without_imagenet_weights_are_refused_by_name(arch: str) -> None:
    with pytest.raises(UsageError, match=f"there are no ImageNet weights for {arch}"):
        expected_normalisation(ModelSection(arch=arch, init="imagenet"), models.spec(arch))


def test_timms_weights_come_through_timm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import _registry

    name = "test_resnet.r160_in1k"
    state = models.create("timm/test_resnet", num_classes=1000).state_dict()
    config = replace(_registry._model_pretrained_cfgs[name], hf_hub_id=None, url=server.put(state, "test_resnet"))
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, config)
    module, initial, _ = loaded(f"timm/{name}", "imagenet", classes=5)
    assert initial.fresh == ("fc.weight", "fc.bias")
    assert initial.source == f"timm's {name}"
    assert initial.normalisation == (config.mean, config.std)
    assert same(module, state, initial.fresh)
    with pytest.raises(UsageError, match=r"set preprocessing.mode=RGB"):
        loaded(f"timm/{name}", "imagenet", channels=1)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, replace(config, url="http://127.0.0.1:1/a.pth"))
    with pytest.raises(MissingError, match=r"can't get timm's weights of test_resnet.r160_in1k"):
        loaded(f"timm/{name}", "imagenet")


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits {seconds} s to try again"))
    with pytest.raises(MissingError, match=r"\(timm/test_resnet.r160_in1k\), .*: bring the machine online"):
        loaded("timm/test_resnet.r160_in1k", "imagenet")
    assert not constants.HF_HUB_OFFLINE
