"""Python API: a whole experiment, with what the commands do."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from resnet_builder import Callback, Run, load_run, train
from resnet_builder.errors import CheckpointError, SpecError, Stopped, UsageError
from tests.cli.experiments import TINY, call, write_tiny
from tests.training.runs import after

SHORT = ["train.epochs=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("api")
    torch.set_num_threads(1)  # as in each test: another number gives other bits
    return train(write_tiny(folder), folder / "run", overrides=SHORT)


def test_result_and_weights_are_those_of_the_command(run: Run, tmp_path: Path) -> None:
    line = ("train", write_tiny(tmp_path), "--set", SHORT[0], "--out", tmp_path / "run", "--json")
    printed = json.loads(call(*line).stdout)
    assert run.result is not None
    differing = {"seconds", "images_per_second", "data_share", "peak_memory"}
    ours = json.loads(run.result.to_json())
    assert {key for key in ours if ours[key] != printed[key]} <= differing
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (run.path / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_run_has_its_spec_history_and_classes(run: Run) -> None:
    again = load_run(str(run.path))
    assert again.spec.name == "tiny"
    assert again.spec.train is not None
    assert again.spec.train.epochs == 2
    assert [row.step for row in again.history if row.val_top1 is not None] == [4, 8]
    assert again.classes == run.classes
    assert len(run.classes) == 4
    assert repr(again) == f"Run({str(run.path)!r})"


def test_evaluation_is_the_recorded_number_and_the_commands(run: Run) -> None:
    assert run.result is not None
    found = run.evaluate()
    assert found.metrics["test.top1"] == run.result.test_top1
    printed = json.loads(call("evaluate", run.path, "--json").stdout)
    assert printed["metrics"] == found.metrics
    assert run.evaluate("val").metrics["val.top1"] == run.result.val_top1


def test_predictions_are_those_of_the_command(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = torch.arange(192, dtype=torch.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels.numpy()).save(path)
    found = run.predict(path, top=4)
    printed = json.loads(call("predict", run.path, path, "--top", 4, "--json").stdout)
    [ours], [theirs] = found.images, printed["images"]
    assert [one["name"] for one in theirs["predictions"]] == [one.name for one in ours.predictions]
    assert run.predict([str(path), path], top=1).images[1].predictions == ours.predictions[:1]

    # The network with its normalisation inside takes the pixels as they are.
    model = load_run(run.path, normalize=True).model
    images = pixels.permute(2, 0, 1)[None]
    with torch.inference_mode():
        bytes_, fractions = model(images).softmax(1), model(images / 255).softmax(1)
    torch.testing.assert_close(bytes_, fractions)
    by_name = {one.name: one.probability for one in ours.predictions}
    wanted = torch.tensor([[by_name[name] for name in run.classes]])
    torch.testing.assert_close(bytes_, wanted, rtol=1e-5, atol=1e-6)


def test_model_is_the_network_in_evaluation_mode(run: Run) -> None:
    assert isinstance(run.model, nn.Sequential)
    assert not run.model.training
    assert run.model is run.model
    normalized: Any = load_run(run.path, normalize=True).model
    state = run.model.state_dict()
    assert all(torch.equal(state[key], one) for key, one in normalized.network.state_dict().items())


def test_stopped_run_resumes_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    spec = write_tiny(tmp_path)
    with pytest.raises(Stopped):
        train(spec, tmp_path / "run", overrides=SHORT, should_stop=after(5))
    stopped = load_run(tmp_path / "run")
    assert stopped.result is None
    assert stopped.spec.name == "tiny"
    again = train(spec, tmp_path / "run", resume=True, overrides=SHORT)
    best = "best.safetensors"
    assert (again.path / best).read_bytes() == (run.path / best).read_bytes()
    # A finished run is returned as it is.
    assert train(spec, tmp_path / "run", resume=True, overrides=SHORT).result == again.result


def test_spec_may_be_a_mapping_and_callbacks_are_called(tmp_path: Path) -> None:
    import yaml

    seen: list[str] = []

    class Seen(Callback):
        def on_checkpoint(self, step: int, path: Path) -> None:
            seen.append(path.name)

    threads = torch.get_num_threads()
    run = train(yaml.safe_load(TINY), tmp_path / "run", overrides=SHORT, callbacks=[Seen()])
    assert run.result is not None
    assert seen == ["step-000000008.safetensors"]
    assert torch.get_num_threads() == threads


def test_threads_train_one_after_another_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    def train_in(number: int) -> bytes:
        torch.set_num_threads(1)
        again = train(run.spec, tmp_path / str(number))
        return (again.path / "last.safetensors").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        weights = [*pool.map(train_in, range(3))]
    assert weights == [(run.path / "last.safetensors").read_bytes()] * 3


def test_images_of_a_folder_take_the_place_of_the_specs_data(tmp_path: Path) -> None:
    for name, shade in (("dark", 40), ("light", 200)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = torch.full((8, 8, 3), shade + number % 5, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    run = train(
        write_tiny(tmp_path),
        tmp_path / "run",
        data=tmp_path / "images",
        overrides=["--epochs 2", "model.image_size=8"],
    )
    assert run.classes == ("dark", "light")
    assert run.result is not None
    assert run.result.steps == 4
    [found] = run.predict(tmp_path / "images" / "dark" / "0.png").images
    assert found.predictions[0].name in run.classes
    assert run.evaluate(data=tmp_path / "images").images == 80


def test_mistakes_are_the_errors_of_the_commands(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        train(write_tiny(tmp_path), run.path)
    with pytest.raises(SpecError, match=r"model\.shortcut"):
        train(write_tiny(tmp_path), tmp_path / "new", overrides=["model.shortcut=projecton"])
    with pytest.raises(UsageError, match="resume needs `out`"):
        train(write_tiny(tmp_path), resume=True)
    with pytest.raises(UsageError, match="no run"):
        load_run(tmp_path)
    with pytest.raises(UsageError, match=r"overrides takes a list: \['--epochs 2'\]"):
        train(write_tiny(tmp_path), tmp_path / "new", overrides="--epochs 2")
    with pytest.raises(UsageError, match=r"overrides takes a list: \['key=value', ...\]"):
        train(write_tiny(tmp_path), tmp_path / "new", overrides={"train.epochs": 2})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"plugins takes a list: \['blocks.py'\]"):
        train(write_tiny(tmp_path), tmp_path / "new", plugins="blocks.py")
    with pytest.raises(UsageError, match="callbacks are objects of `Callback`, not builtin_funct"):
        train(write_tiny(tmp_path), tmp_path / "new", callbacks=[print])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="a spec is a path, a name or a mapping, not int"):
        train(3, tmp_path / "new")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="top is the number of classes for each image, not 0"):
        run.predict("image.png", top=0)
    with pytest.raises(TypeError, match=r"or uint8, not torch\.int64"):
        load_run(run.path, normalize=True).model(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(SpecError, match=r"in Python there is `fragments=\[...\]`"):
        train(write_tiny(tmp_path), tmp_path / "new", overrides=["--with small_data"])
    with pytest.raises(UsageError, match="no split is named 'tset'; there are train, val, test"):
        run.evaluate("tset")
    for pixels in (3, Image.new("L", (8, 8)), [torch.zeros(1, 8, 8)]):
        with pytest.raises(UsageError, match="predict takes paths of images"):
            run.predict(pixels)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    (tmp_path / "damaged").mkdir()
    for file in run.path.iterdir():
        if file.is_file():
            (tmp_path / "damaged" / file.name).write_bytes(file.read_bytes()[:400])
    with pytest.raises((CheckpointError, SpecError)):
        _ = load_run(tmp_path / "damaged").model
