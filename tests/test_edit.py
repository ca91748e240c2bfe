"""clip-edit and ct.edit: scores against loops, files that open_clip loads, lines of other commands, masks, and bad input."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.advgen_input import inside
from helpers.resnet_paths import pair_effects
from helpers.tiny_suite import TEXTS, Suite

import cliptools as ct
from cliptools.analysis.seen import ReadDirections, cue_scores, write_scores
from cliptools.errors import CliptoolsError, ModelError, StreamError, UsageError
from cliptools.front.edit_choose import _random_units
from cliptools.front.images import open_any
from cliptools.front.mask import Masked, _read, mask_hooks
from cliptools.front.vocabulary import vocabulary
from cliptools.io.header import digest
from cliptools.models.activation import trained_activation
from cliptools.models.architecture import weights_sha256
from cliptools.models.checkpoints.edited import edit_header
from cliptools.models.load import load_model
from cliptools.models.origin import Origin
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool
from cliptools.towers.hooks import hooked


@pytest.fixture(scope="module")
def second(suite: Suite) -> ct.UnitBundle:
    return ct.read(suite.bundle("second"))


@pytest.fixture(scope="module")
def pooled(suite: Suite) -> ct.UnitBundle:
    return ct.read(suite.bundle("pooled"))


def edit(units: Any, **arguments: Any) -> ct.Edited:
    return ct.edit(units, texts=TEXTS, device="cpu", **arguments)


def command(suite: Suite, *arguments: Any, stdin: bytes = b"") -> Any:
    texts = stdin or {"--sees", "--writes"} & set(map(str, arguments))  # without texts, a vocabulary would have no effect
    return inside("edit", *(("--pool", suite.pool) if texts else ()), "--device", "cpu", "-q", *arguments, stdin=stdin)


def test_scores_are_the_products_that_they_are_said_to_be() -> None:
    generator = torch.Generator().manual_seed(2)
    q, r, x, s, t = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (7, 7, 30, 2, 3))
    deviation = torch.rand(7, dtype=torch.float64, generator=generator)
    deviation[2], q[2] = 0, 0
    covariance = x.T @ x / 30

    def see(n: int, text: torch.Tensor) -> float:
        variance = sum(float(text[i] * covariance[i, j] * text[j]) for i in range(5) for j in range(5))
        return max(-1.0, min(1.0, float(q[n] @ text) / (float(deviation[n]) * variance**0.5))) if deviation[n] > 0 else 0.0

    read = ReadDirections(q / 4, deviation, covariance)  # so that some correlations end at 1 and others do not
    q = read.q
    for rather in (False, True):
        score = cue_scores(read, r, s, t, rather)
        for n in range(7):
            expected = 0.0
            for cue in s:
                for text in t:
                    factor = max(0.0, see(n, cue) - see(n, text)) if rather else 1.0
                    expected += max(0.0, see(n, cue)) * max(0.0, float(r[n] @ text)) * float(deviation[n]) * factor
            assert float(score[n]) == pytest.approx(expected, abs=1e-9)
    correlations = [[see(n, text) for text in s] for n in range(7)]
    np.testing.assert_allclose(read.correlations(s), correlations, atol=1e-9)
    assert {abs(value) < 1 for row in correlations for value in row} == {True, False}
    written = sum(max(0.0, float(r[3] @ text)) for text in t) * float(deviation[3])
    assert float(write_scores(r, deviation, t)[3]) == pytest.approx(written, abs=1e-9)


def test_folder_and_file_load_as_the_edited_model_and_name_its_parent(
    suite: Suite, second: ct.UnitBundle, tmp_path: Path
) -> None:
    folder = Path(suite.vit.removeprefix("local-dir:"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    edited = edit(second, writes="cat")
    record = edited.save_folder(tmp_path / "repaired")
    assert record["model"]["name"] == f"local-dir:{tmp_path / 'repaired'}"
    file = edited.save(tmp_path / "repaired.safetensors")
    assert file["before"] == second.header.model["sha256"] and file["after"] == file["model"]["sha256"] != file["before"]
    assert file["how"] == "null" and file["exact"] and file["count"] == second.units and 0 < file["removed"]["largest"] <= 1
    assert file["overlap"] < 1e-5
    for name, pretrained in ((f"local-dir:{tmp_path / 'repaired'}", None), (suite.vit, str(tmp_path / "repaired.safetensors"))):
        model = load_model(name, pretrained, "cpu")
        assert model.sha256 == record["after"] and model.parent is not None
        assert model.parent["sha256"] == record["before"] and model.identity["parent"] == model.parent
        assert model.computes.digest == second.header.model["architecture"]
    clip = open_clip.create_model(f"local-dir:{tmp_path / 'repaired'}")
    assert weights_sha256(clip) == record["after"]
    assert json.loads((tmp_path / "repaired" / "edit.json").read_text())["after"] == record["after"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    edited.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "repaired.safetensors").read_bytes()
    assert "neurons" not in edited.table() and "largest overlap" in edited.table()


def test_bundles_and_records_made_with_an_edited_model_carry_its_parent(
    suite: Suite, second: ct.UnitBundle, tmp_path: Path
) -> None:
    edit(second, writes="cat").save(tmp_path / "repaired.safetensors")
    words = ("--model", suite.vit, "--pretrained", tmp_path / "repaired.safetensors", "--layers", 2, "--limit", 4)
    done = inside("effects", suite.images, *words, "--top-images", 3, "-q", "-o", tmp_path / "after.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    bundle = ct.read(tmp_path / "after.safetensors")
    assert bundle.header.model["parent"]["sha256"] == second.header.model["sha256"]
    assert bundle.records()[0]["model"]["parent"]["sha256"] == second.header.model["sha256"]
    again = edit(bundle, writes="dog")  # an edit of an edit
    record = again.save(tmp_path / "twice.safetensors")
    assert record["model"]["parent"]["parent"]["sha256"] == second.header.model["sha256"]
    with pytest.raises(UsageError, match="would change nothing"):
        edit(bundle, writes="cat")


def test_only_the_columns_of_the_units_change_and_fp16_is_told(second: ct.UnitBundle, suite: Suite) -> None:
    few = second.select(np.arange(3))
    model = load_model(suite.vit, None, "cpu")
    edited = edit(few, writes=["cat", "dog"], model=model)
    state = model.clip.state_dict()
    layer = int(few["unit"][0, 0])
    name = f"visual.transformer.resblocks.{layer}.mlp.c_proj.weight"
    assert [key for key in state if not torch.equal(state[key], edited.tensors[key])] == [name]
    columns = (state[name] != edited.tensors[name]).any(0).nonzero()[:, 0].tolist()
    assert sorted(columns) == sorted(few["unit"][:, 1].tolist())
    assert weights_sha256(model.clip) == model.sha256  # the given model is as it was
    half = edit(few, writes="cat", precision="fp16")
    assert half.record["overlap"] > 10 * edited.record["overlap"] and half.tensors[name].dtype == torch.float16


def test_scores_choose_the_units_of_a_bundle(second: ct.UnitBundle, pooled: ct.UnitBundle) -> None:
    images = {"limit": 4, "images": np.zeros((4, 64, 64, 3), np.uint8)}
    for bundle, kind, means in ((second, "cue-not-class", {}), (pooled, "cue", images)):
        edited = edit(bundle, sees="cat", writes="dog", head=4, **means)
        scores = [unit["score"] for unit in edited.record["units"]]
        assert scores == sorted(scores, reverse=True) and min(scores) > 0 and len(scores) <= 4
        assert edited.record["units"] == edit(bundle, sees="cat", writes="dog", head=4, by=kind, **means).record["units"]


def test_repeated_texts_count_once(second: ct.UnitBundle) -> None:
    once = edit(second, sees=["dog", "sky"], writes=["cat", "pizza"], head=6).record
    again = edit(second, sees=["dog", "sky ", "sky"], writes=["cat", " cat", "pizza"], head=6).record
    assert once["sees"] == ["dog", "sky"] and once["writes"] == ["cat", "pizza"]
    assert {key: value for key, value in again.items() if key != "history"} == {k: v for k, v in once.items() if k != "history"}


def test_neurons_and_last_heads_stand_at_means_over_images(suite: Suite, second: ct.UnitBundle) -> None:
    model = load_model(suite.vit, None, "cpu")
    few = second.select(np.arange(2))
    edited = edit(few, images=suite.images, how="zero", model=model)
    (layer, neuron, _), block = few["unit"][0].tolist(), model.clip.visual.transformer.resblocks
    assert edited.record["images"]["count"] == len(list(suite.images.iterdir()))
    assert not edited.tensors[f"visual.transformer.resblocks.{layer}.mlp.c_proj.weight"][:, neuron].any()
    assert block[layer].mlp.c_proj.weight[:, neuron].any()
    edited.save(suite.folder / "zero.safetensors")
    zero = load_model(suite.vit, str(suite.folder / "zero.safetensors"), "cpu")
    line = {"layer": layer, "neuron": neuron, "model": zero.identity}
    with pytest.raises(UsageError, match="every weight of these units is as it would be"):
        edit([line], images=suite.images, how="zero", model=zero)
    with pytest.raises(CliptoolsError, match="no random units are left"):
        _random_units(few, edited)
    heads = ct.read(suite.bundle("heads"))
    last = heads.select(np.flatnonzero(heads["unit"][:, 0] == heads["unit"][:, 0].max())[:1])
    assert last["unit"][0, 0] == 2  # of layers 0 to 3: a head before the last layer
    with pytest.raises(UsageError, match=r"heads before the last layer \(3\) are read at every token"):
        edit(last, images=suite.images)
    assert not edit(last, images=suite.images, approximate=True).record["exact"]
    line = {"layer": 3, "head": 1, "model": heads.header.model}
    record = edit([line], images=suite.images).record
    assert record["exact"] and record["edit"].startswith("each head of the last layer")


def test_pairs_stand_at_their_means_from_the_bundle_or_from_images(suite: Suite, pooled: ct.UnitBundle) -> None:
    model = load_model(suite.resnet, None, "cpu")
    few = pooled.select(np.array([0, 5, 9]))
    from_bundle, from_images = edit(few, model=model), edit(few, images=suite.images, model=model)
    bias = "visual.attnpool.c_proj.bias"
    assert torch.allclose(from_bundle.tensors[bias], from_images.tensors[bias], atol=1e-5)
    assert from_bundle.record["images"]["count"] == pooled.header.images["count"]
    visual: Any = load_model(suite.resnet, None, "cpu").clip.visual
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    before, w = visual(image), torch.stack([pair_effects(visual, one) for one in image])  # (image, neuron, head, d)
    state = {key.removeprefix("visual."): value for key, value in from_images.tensors.items() if key.startswith("visual.")}
    visual.load_state_dict(state)
    unit = few["unit"]
    source = open_any(suite.images)
    pictures = torch.stack([model.transform(source.load(index)) for index in range(len(source.names))])
    original: Any = model.clip.visual
    mean = torch.stack([pair_effects(original, one) for one in pictures]).mean(0)
    change = sum(mean[n, h] - w[:, n, h] for _, n, h in unit.tolist())
    assert torch.allclose(visual(image), before + change, atol=1e-4)


def test_pairs_no_longer_write_along_a_text_beyond_their_mean(suite: Suite, pooled: ct.UnitBundle) -> None:
    model = load_model(suite.resnet, None, "cpu")
    few = pooled.select(np.array([0, 5, 9]))
    edited = edit(few, writes=["cat", "dog"], model=model)
    assert edited.record["how"] == "null" and edited.record["exact"] and edited.record["overlap"] < 1e-6
    assert edited.record["images"]["count"] == pooled.header.images["count"]
    assert all(unit["writes"] == ["cat", "dog"] and 0 < unit["removed"] < 1 for unit in edited.record["units"])
    visual: Any = load_model(suite.resnet, None, "cpu").clip.visual
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    before, w = visual(image), torch.stack([pair_effects(visual, one) for one in image])  # (image, neuron, head, d)
    visual.load_state_dict(
        {key.removeprefix("visual."): value for key, value in edited.tensors.items() if key.startswith("visual.")}
    )
    after = torch.stack([pair_effects(visual, one) for one in image])
    pool = vocabulary(TEXTS)
    names = Pool("texts", ("cat", "dog"), digest("cat", "dog"))
    v = encode_named(model, names, ()) - encode_named(model, pool, ()).mean(0)  # (text, d)
    constant = visual(image) - before - (after - w).sum((1, 2))  # the same on every image: the means along v
    assert torch.allclose(constant[0], constant[1], atol=1e-4) and constant.abs().max() > 0
    changed = torch.zeros(w.shape[1:3], dtype=torch.bool)
    for _, n, h in few["unit"].tolist():
        changed[n, h] = True
    assert torch.allclose(after[:, ~changed], w[:, ~changed], atol=1e-6)
    written = (w[:, changed] @ v.T).abs().max()
    assert (after[:, changed] @ v.T).abs().max() < 1e-5 * written
    assert edit(few, model=model).record["how"] == "zero", "without a text"
    for kind in ("neurons", "heads"):
        line = {"layer": 4, ("neuron" if kind == "neurons" else "head"): 1, "model": pooled.header.model}
        with pytest.raises(UsageError, match=f"--how null is for .*; {kind} of this model have --how zero"):
            edit([line], how="null", writes="cat", images=suite.images)


def test_units_come_from_lines_of_other_commands(suite: Suite, second: ct.UnitBundle) -> None:
    spurious = [json.loads(line) for line in (suite.folder / "words.jsonl").read_text().splitlines()]
    edited = edit(spurious)
    named = {(item["layer"], item["neuron"]) for line in spurious for item in line["neurons"] if item["share"] > 0}
    assert {(unit["layer"], unit["neuron"]) for unit in edited.record["units"]} == named
    assert edited.record["writes"] == ["dog"] and edited.record["bundle"] == spurious[0]["bundle"]
    pairs = ct.mismatch(second, "cat", texts=TEXTS, head=1, device="cpu")
    assert edit(pairs).record["writes"] == [pairs[0]["writes"]]
    assert edit(pairs, writes="boat", head=1).record["writes"] == ["boat"]
    model = second.header.model
    judged = {"layer": 1, "neuron": 2, "written": {"word": "key"}, "model": model}
    assert edit([judged, judged | {"written": {"word": "crown"}}]).record["units"][0]["writes"] == ["key", "crown"]
    units = [{"layer": 1, "neuron": 2, "share": 1, "excess": -1}, {"layer": 1, "neuron": 3, "share": -0.1, "excess": 0.2}]
    explained = edit([{"image": "x", "a": "cat", "b": "dog", "units": units, "model": model}]).record
    assert explained["count"] == 1 and explained["units"][0]["neuron"] == 3 and explained["writes"] == ["cat"]
    viewed = {"layer": 1, "neuron": 2, "words": [{"word": "pizza", "coefficient": 0.2}], "model": model}
    done = command(suite, "-o", suite.folder / "lines.safetensors", stdin=json.dumps(viewed).encode())
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads(done.stdout)
    assert record["writes"] == ["pizza"] and record["output"] == str(suite.folder / "lines.safetensors")
    assert record["history"][-1]["command"] == "clip-edit"


def test_a_bundle_on_standard_input_gives_a_checkpoint_and_a_folder_in_one_run(suite: Suite, tmp_path: Path) -> None:
    words = ("--sees", "cat", "--writes", "dog", "-o", tmp_path / "a.safetensors", "--out-dir", tmp_path / "b", "-f", "table")
    done = command(suite, *words, stdin=suite.bundle("second").read_bytes())
    assert done.returncode == 0, done.stderr.decode()
    assert b"each neuron no longer writes along the texts" in done.stdout
    header = edit_header(tmp_path / "a.safetensors")
    assert header is not None
    assert load_model(f"local-dir:{tmp_path / 'b'}", None, "cpu").sha256 == header.model["sha256"]


def test_activation_and_preprocessing_travel_in_the_metadata(suite: Suite, second: ct.UnitBundle, tmp_path: Path) -> None:
    folder = tmp_path / "quick"
    shutil.copytree(suite.vit.removeprefix("local-dir:"), folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = load_model(f"local-dir:{folder}", None, "cpu")
    line = {"layer": 1, "neuron": 2, "model": model.identity}
    edited = edit([line], writes="cat")
    edited.save(tmp_path / "quick.safetensors")
    header = edit_header(tmp_path / "quick.safetensors")
    assert header is not None and header.model["activation"]["image"] == "QuickGELU" and header.model["grid"] == [3, 3]
    assert header.model["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    trained = trained_activation(Origin("file", "ViT-B-32", None, tmp_path / "quick.safetensors"))
    assert trained is not None and trained.quick and "clip-edit" in trained.reason
    edited.save_folder(tmp_path / "out")
    again = load_model(f"local-dir:{tmp_path / 'out'}", None, "cpu")
    assert again.computes.digest == model.computes.digest and again.preprocessing == model.preprocessing
    under_old_name = load_model(suite.vit, str(tmp_path / "quick.safetensors"), "cpu")
    assert under_old_name.preprocessing["mean"] == [0.5, 0.5, 0.5]


def test_a_changed_file_is_no_longer_named_as_a_child(suite: Suite, second: ct.UnitBundle, tmp_path: Path) -> None:
    edited = edit(second, writes="cat")
    edited.tensors["logit_scale"] = edited.tensors["logit_scale"] + 1
    edited.save(tmp_path / "other.safetensors")
    assert load_model(suite.vit, str(tmp_path / "other.safetensors"), "cpu").parent is None


@pytest.mark.parametrize("name", ["second", "heads"])
def test_masks_are_applied_by_clip_ablate_and_clip_segment(suite: Suite, name: str, tmp_path: Path) -> None:
    mask = tmp_path / "mask.safetensors"
    done = command(suite, suite.images, "--mask", mask, "--bundle", suite.bundle(name))
    assert done.returncode == 0, done.stderr.decode()
    digest = json.loads(done.stdout)["mask"]
    words = suite.bundle("second-words")
    ablate = (suite.folder / "photos", "--classes", suite.classes, "--bundle", words, "--ablate", "none", "-f", "jsonl")
    segment = (suite.images, "--text", "cat", "--bundle", words, "-f", "jsonl", "--method", "attention")
    for tool, options in (("ablate", ablate), ("segment", segment)):
        plain, masked = (inside(tool, *options, "-q", *more) for more in ((), ("--mask", mask)))
        assert plain.returncode == masked.returncode == 0, masked.stderr.decode()
        records = [[json.loads(line) for line in done.stdout.splitlines()] for done in (plain, masked)]
        if tool == "ablate":
            untouched, mask_alone, setting = records[1]
            assert untouched == records[0][0] and "effect" not in mask_alone and setting["effect"] == "second"
            assert mask_alone["mask"] == setting["mask"] == digest and 0 < mask_alone["cosine"] == setting["cosine"] < 1
        else:
            assert {record["mask"] for record in records[1]} == {digest}
            assert [record | {"mask": digest} for record in records[0]] != records[1]
    model = load_model(suite.vit, None, "cpu")
    hooks, _ = mask_hooks(model, mask)
    visual: Any = model.clip.visual
    image = torch.randn(1, 3, 24, 24)
    before = visual(image)
    with hooked(hooks):
        assert not torch.allclose(visual(image), before, atol=1e-4)
    assert torch.equal(visual(image), before)


def test_mask_for_another_model_or_no_mask(suite: Suite, tmp_path: Path) -> None:
    mask = tmp_path / "mask.safetensors"
    assert command(suite, suite.images, "--mask", mask, "--bundle", suite.bundle("second")).returncode == 0
    other = load_model("emoji-vit2", None, "cpu")
    vit = load_model(suite.vit, None, "cpu")
    for model, path, words in (
        (other, mask, "a mask of another model"),
        (vit, suite.bundle("second"), "found a file of kind 'effects'"),
        (vit, suite.pool, "found another or a damaged file"),
        (vit, Path(suite.vit.removeprefix("local-dir:")) / "open_clip_model.safetensors", "found other tensors"),
    ):
        with pytest.raises(StreamError, match=words):
            mask_hooks(model, path)
    with pytest.raises(CliptoolsError, match="No such file"):
        mask_hooks(vit, tmp_path / "gone")
    header, tensors = _read(mask)
    Masked({}, header, tensors | {"neuron": tensors["neuron"] + 1000}).save(tmp_path / "units.safetensors")
    with pytest.raises(StreamError, match="do not fit the model"):
        mask_hooks(vit, tmp_path / "units.safetensors")
    Masked({}, header, tensors | {"neuron": tensors["neuron_mean"]}).save(tmp_path / "type.safetensors")
    with pytest.raises(StreamError, match="tensor `neuron` has another type or shape"):
        mask_hooks(vit, tmp_path / "type.safetensors")


def test_outputs_that_cannot_be(suite: Suite, tmp_path: Path) -> None:
    bundle, own = suite.bundle("second"), Path(suite.vit.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    copy = tmp_path / "copy.safetensors"
    shutil.copyfile(bundle, copy)
    (tmp_path / "full.safetensors").symlink_to("/dev/full")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    write = ("--writes", "cat", "--bundle", bundle)
    before = own.read_bytes()
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"layer": 1, "neuron": 2, "writes": "cat", "model": ct.read(bundle).header.model}))
    for words, status, message in (
        ((*write,), 2, "nothing to write"),
        ((*write, "-o", "-"), 2, "standard output is for the record"),
        ((*write, "-o", tmp_path / "a.bin"), 2, "ends in .safetensors"),
        ((*write, "-o", own), 2, "a file of the model that is edited"),
        (("--writes", "cat", "--bundle", copy, "-o", copy), 2, "an input of this run"),
        ((*write, "-o", tmp_path / "none" / "a.safetensors"), 1, "cannot write here"),
        ((*write, "-o", tmp_path / "full.safetensors"), 1, "No space left"),
        ((*write, "--out-dir", tmp_path / "taken"), 1, "not empty"),
        ((*write, "-o", tmp_path / "a.safetensors", "--mask", tmp_path / "b"), 2, "leave -o and --out-dir out"),
        ((*write, "--how", "null", "--mask", tmp_path / "b"), 2, "--how null is an edit of weights"),
        ((*write, "-", "-o", tmp_path / "a.safetensors", "--bundle", "-"), 2, "cannot both come from standard input"),
        ((*write, "--means", bundle, "-o", tmp_path / "a.safetensors"), 2, "--means is for units that lines name"),
        (
            ("--bundle", lines, "--means", bundle, "-o", tmp_path / "a.safetensors"),
            2,
            "--means is for units of a ResNet",
        ),
        (("--bundle", suite.bundle("pooled"), "--mask", tmp_path / "b"), 2, "weights put units of a ResNet"),
        ((*write, "-o", tmp_path / "a.safetensors", "--sees", " "), 2, "--sees: found an empty text"),
        ((*write[2:], "-o", tmp_path / "a.safetensors", "--writes", ""), 2, "--writes: found an empty text"),
        ((*write, "-o", tmp_path / "a.safetensors", suite.images), 2, "--how null of neurons takes none: leave them out"),
        ((*write, "-o", tmp_path / "a.safetensors", "--sample", 3), 2, "--how null of neurons takes none: leave them out"),
        ((*write, "-o", tmp_path / "a.safetensors", "--loss", 0.5), 2, "--loss needs --choose, --test and --groups"),
        ((*write, "-o", tmp_path / "a.safetensors", "--classes", "emoji"), 2, "--classes needs --choose, --test and --groups"),
        (("-o", tmp_path / "a.safetensors"), 1, "found nothing (did the command before it fail?)"),
        (
            (*write, "--how", "zero", "--limit", 3, "-o", tmp_path / "a.safetensors"),
            2,
            "--writes has no effect: units at their means",
        ),
    ):
        done = command(suite, *words)
        assert done.returncode == status and message in done.stderr.decode(), (words, done.stderr.decode())
        assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert own.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.safetensors", "full.safetensors", "lines.jsonl", "taken"]


def test_lines_with_a_byte_order_mark_and_blank_lines(suite: Suite, second: ct.UnitBundle, tmp_path: Path) -> None:
    line = json.dumps({"layer": 1, "neuron": 2, "writes": "cat", "model": second.header.model}).encode()
    marked = command(suite, "-o", tmp_path / "a.safetensors", stdin=b"\xef\xbb\xbf\r\n" + line + b"\r\n")
    assert marked.returncode == 0, marked.stderr
    blank = command(suite, "-o", tmp_path / "b.safetensors", stdin=b"\n \n")
    assert blank.returncode == 1 and b"found nothing (did the command before it fail?)" in blank.stderr


def test_the_record_names_the_whole_bundle_and_only_what_counts(suite: Suite, second: ct.UnitBundle, tmp_path: Path) -> None:
    layer = int(second["unit"][0, 0])
    edited = edit(second, sees="dog", writes="cat", layers=[layer], head=3)
    assert edited.record["bundle"] == second.digest and {unit["layer"] for unit in edited.record["units"]} == {layer}
    unit = [{"layer": 1, "neuron": 2, "writes": "cat", "model": second.header.model}]
    at_mean = edit(unit, images=suite.images, how="zero")
    assert at_mean.record["writes"] == [], "no text decides anything about a unit at its mean"
    files = []
    for number, more in enumerate(((), ("--approximate", "--seed", 3))):
        path = tmp_path / f"{number}.safetensors"
        done = command(suite, "-o", path, *more, stdin=json.dumps(unit[0]).encode())
        assert done.returncode == 0, done.stderr
        arguments = json.loads(done.stdout)["history"][-1]["arguments"]
        assert not {"approximate", "seed", "choose", "test", "loss"} & set(arguments)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_a_read_only_source_is_edited_and_stays(suite: Suite, second: ct.UnitBundle, tmp_path: Path) -> None:
    folder = Path(suite.vit.removeprefix("local-dir:"))
    modes = {path: path.stat().st_mode for path in (folder, *folder.iterdir())}
    try:
        for path in modes:
            os.chmod(path, 0o555)
        edit(second, writes="cat").save(tmp_path / "a.safetensors")
    finally:
        for path, mode in modes.items():
            os.chmod(path, mode)
    assert (tmp_path / "a.safetensors").is_file()


def test_bad_units(suite: Suite, second: ct.UnitBundle, pooled: ct.UnitBundle) -> None:
    model, other = second.header.model, pooled.header.model
    unit = {"layer": 1, "neuron": 2, "model": model}
    blind = second.with_tensors(second.header, read=np.zeros_like(second["read"]))
    older = ct.UnitBundle(second.header, {name: value for name, value in second.tensors.items() if name != "read"})
    for units, arguments, error, message in (
        ([unit, unit | {"model": other}], {}, StreamError, "record 2: a unit of another model than the lines before"),
        ([], {}, StreamError, "found nothing"),
        ([{"model": model, "units": []}], {}, StreamError, "none of the lines names a unit"),
        ([{"model": model}], {}, StreamError, "record 1: names no unit"),
        ([{"layer": 1}], {}, StreamError, "expected a record with units and their `model`"),
        ([unit | {"model": model | {"parent": "x"}}], {}, StreamError, "should hold objects"),
        ([unit | {"neuron": "a"}], {"writes": "cat"}, StreamError, "expected a unit as whole numbers"),
        ([unit | {"neuron": 999}], {"writes": "cat"}, StreamError, "neuron 1:999, which the model does not have"),
        ([unit], {}, UsageError, "--how null needs the texts"),
        ([unit], {"writes": "cat", "bundle": pooled}, StreamError, "bundle for means is of another model than that of the lines"),
        ([unit], {"sees": "cat", "writes": "dog"}, UsageError, "lines name their units already"),
        ([unit], {"writes": "cat", "layers": [1]}, UsageError, "lines name their units already"),
        ([unit, {"layer": 3, "head": 0, "model": model}], {"writes": "cat"}, UsageError, "units of several kinds"),
        ([unit | {"model": model | {"sha256": "0" * 64}}], {"writes": "cat"}, ModelError, "same name, another model"),
        (second, {"sees": "cat"}, UsageError, "--sees .* needs --writes"),
        (second, {"writes": "cat", "by": "cue"}, UsageError, "--by needs --sees"),
        (blind, {"sees": "cat", "writes": "dog"}, UsageError, "no unit of the bundle sees 'cat' and writes 'dog'"),
        (older, {"sees": "cat", "writes": "dog"}, StreamError, "without `read`"),
        (second.select(np.arange(0)), {"writes": "cat"}, StreamError, "the bundle has no units"),
        (second.select(np.arange(0)), {"sees": "cat", "writes": "dog"}, StreamError, "the bundle has no units"),
        (second, {"how": "zero"}, UsageError, "name the images as PATH"),
        (second, {"writes": "cat", "model": load_model("emoji-vit2", None, "cpu")}, ModelError, "not the one of the units"),
        (second, {"writes": "cat", "model": load_model(suite.vit, None, "cpu", "bf16")}, ModelError, "not whole in fp32"),
    ):
        with pytest.raises(error, match=message):
            edit(units, **arguments)
