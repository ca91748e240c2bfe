"""The files in the command lines of messages.txt: valid ones, and files with exactly one fault."""

import contextlib
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header
from cliptools.io.spools import TensorSpool
from helpers.pictures_made import deflated_zeros, png, png_chunk
from helpers.soundness import sound
from helpers.stream_bundles import apart, together

WIDTH = 120
Tensors = dict[str, np.ndarray]


def neurons(model: dict[str, Any]) -> Bundle:
    """Return three neurons of layer 6 of emoji-vit2 with words, thumbnails and random directions."""
    tensors, numbers = dict(sound().tensors), np.random.default_rng(0)
    direction = numbers.normal(size=(3, WIDTH))
    tensors["direction"] = (direction / np.linalg.norm(direction, axis=1, keepdims=True)).astype(np.float32)
    tensors["mean"] = numbers.normal(size=(3, WIDTH)).astype(np.float32)
    tensors["words"] = json_tensor({"texts": ["dog", "cat", "boat"], "pool": "p", "digest": "1"})
    settings = {"effect": "second", "units": "neurons", "scale": "unit", "quantile": 0.9, "layers": [6]}
    settings |= {"words": {"method": "pursuit", "pool": "p", "center": "pool", "normalize": "texts", "templates": []}}
    return Bundle(Header("neurons", model, {"count": 3, "digest": "0" * 64, "skipped": 0}, settings), tensors)


def without(bundle: Bundle, *names: str) -> Bundle:
    """Return the bundle without these tensors."""
    return replace(bundle, tensors={name: value for name, value in bundle.tensors.items() if name not in names})


def changed(bundle: Bundle, **tensors: np.ndarray) -> Bundle:
    """Return the bundle with other tensors."""
    return replace(bundle, tensors=bundle.tensors | tensors)


def said(bundle: Bundle, **settings: Any) -> Bundle:
    """Return the bundle with other settings."""
    return replace(bundle, header=replace(bundle.header, settings=bundle.header.settings | settings))


def of_model(bundle: Bundle, **model: Any) -> Bundle:
    """Return the bundle with another model."""
    return replace(bundle, header=replace(bundle.header, model=bundle.header.model | model))


def make_bundles(folder: Path, model: dict[str, Any], resnet: dict[str, Any]) -> None:
    """Write bundles that are valid but do not suit the command."""
    whole = neurons(model)
    words = ("word", "words", "coefficient", "residual")
    unit = np.array([[6, 1, 0], [6, 2, 1], [6, 3, 2]], np.int32)
    pairs = without(whole, "direction", "mean", "explained", "explained_all", *words)
    wide = whole.select(np.zeros(4000, np.int64))
    made = {
        "vit": whole,
        "effects": without(whole, *words, "thumbnails", "thumbnail_offsets"),
        "bare": replace(whole, tensors={"unit": whole["unit"]}),
        "unsaid": whole,
        "none": whole.select(np.zeros(0, np.int64)),
        "textspan": said(whole, words={"method": "textspan"}),
        "other": of_model(whole, sha256="7" * 64),
        "computed": of_model(whole, architecture="7" * 64, activation={"image": "QuickGELU", "text": "QuickGELU"}),
        "grey": of_model(whole, preprocessing={"mean": "grey"}),
        "narrow": changed(whole, direction=whole["direction"][:, :4].copy(), mean=whole["mean"][:, :4].copy()),
        "foreign": of_model(whole, name="ViT-B-32", pretrained="openai"),
        "indirect": said(whole, effect="indirect"),
        "pairs": changed(pairs, unit=unit, sign=np.ones(3, np.int8), mean_scalar=np.ones(3, np.float32)),
        "heads": changed(whole, unit=np.array([[6, -1, 0], [6, -1, 1], [6, -1, 2]], np.int32)),
        "wordless": without(whole, "coefficient"),
        "beyond": changed(whole, unit=np.array([[6, 1, -1], [6, 2, -1], [6, 99999, -1]], np.int32)),
        "poolless": changed(whole, words=json_tensor({"texts": ["dog", "cat", "boat"]})),
        "many": wide,
        "torn": changed(whole, thumbnails=np.full_like(whole["thumbnails"], 7)),
        "twins": changed(whole, unit=np.array([[6, 1, -1]] * 3, np.int32)),
    }
    del made["unsaid"].header.model["precision"]
    made["vit"] = neurons(model)
    made |= of_resnet(of_model(said(made["pairs"], effect="pooled", units="pairs", layers=[4]), **resnet))
    for name, bundle in made.items():
        complete = bundle if name == "unsaid" else of_model(bundle, precision="fp32")
        (folder / f"{name}.safetensors").write_bytes(complete.to_bytes())


def of_resnet(pairs: Bundle) -> dict[str, Bundle]:
    """Write pairs of emoji-rn2, pairs that do not exist in it, and neurons."""
    unit = np.array([[4, 1, 0], [4, 2, 1], [4, 3, 2]], np.int32)
    beyond, whole = unit.copy(), unit.copy()
    beyond[0, 1], whole[:, 2] = 99999, -1
    direction = np.eye(3, WIDTH, dtype=np.float32)
    single = changed(without(pairs, "sign", "mean_scalar"), unit=whole, direction=direction, mean=direction)
    made = {
        "rn": changed(pairs, unit=unit),
        "rn-beyond": changed(pairs, unit=beyond),
        "rn-neurons": said(single, units="neurons"),
    }
    return {
        name: replace(bundle, header=replace(bundle.header, model=dict(bundle.header.model))) for name, bundle in made.items()
    }


def make_damaged(folder: Path) -> None:
    """Write files that are not bundles, each for one reason."""
    whole = (folder / "vit.safetensors").read_bytes()

    def header(name: str, **fields: Any) -> None:
        parts, body = apart(whole)
        said = json.loads(parts["__metadata__"]["cliptools"])
        parts["__metadata__"]["cliptools"] = json.dumps(said | fields)
        (folder / f"{name}.safetensors").write_bytes(together(parts, body))

    def entry(name: str, **fields: Any) -> None:
        parts, body = apart(whole)
        parts["unit"] = {key: value for key, value in (parts["unit"] | fields).items() if value is not None}
        (folder / f"{name}.safetensors").write_bytes(together(parts, body))

    def raw(name: str, text: bytes) -> None:
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text)

    (folder / "truncated.safetensors").write_bytes(whole[:-9])
    (folder / "more.safetensors").write_bytes(whole + b"x")
    (folder / "long-header").write_bytes((99_999_999).to_bytes(8, "little") + b"{}")
    raw("no-json", b"[}")
    raw("key-twice", b'{"a": 1, "a": 2}')
    raw("no-object", b"[1]")
    raw("no-entry", b'{"w": [1]}')
    raw("plain.safetensors", b'{"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}')
    parts, body = apart(whole)
    entry("entry", shape=None)
    entry("offsets", data_offsets=[0, -1])
    entry("type", dtype="BF16")
    entry("size", shape=[4, 3])
    start, stop = parts["unit"]["data_offsets"]
    entry("overlap", data_offsets=[start - 4, stop - 4])
    (folder / "metadata.safetensors").write_bytes(together(parts | {"__metadata__": parts["__metadata__"] | {"x": 5}}, body))
    at = parts["threshold"]["data_offsets"][0]
    (folder / "nan.safetensors").write_bytes(together(parts, body[:at] + np.float32("nan").tobytes() + body[at + 4 :]))
    header("other-header", more=1)
    header("format", format=2)
    header("fields", model=[])
    header("damaged-header", images={"count": float("nan")})
    header("nameless", model={"name": "m"})
    header("count", images={"count": "many"})
    header("effect", settings={"effect": "seventh"})


def make_parts(folder: Path, partial_bytes: Any) -> None:
    """Write partials: two of one run, and some that match no other."""

    def changed(data: bytes, settings: dict[str, Any], without: tuple[str, ...] = (), **tensors: np.ndarray) -> bytes:
        parts, body = apart(data)
        said = json.loads(parts["__metadata__"]["cliptools"])
        types = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
        places = {name: place for name, place in parts.items() if name != "__metadata__"}
        with contextlib.closing(TensorSpool()) as spool:
            for name, place in sorted(places.items(), key=lambda item: item[1]["data_offsets"]):
                start, stop = place["data_offsets"]
                value = np.frombuffer(body[start:stop], types[place["dtype"]]).reshape(place["shape"])
                value = tensors.get(name, value)
                if name not in without:
                    spool.put(name, len(value), 0, value)
            said["settings"] |= settings | {"tensors": spool.digest()}
            said["settings"] = {key: value for key, value in said["settings"].items() if value != "left out"}
            out = io.BytesIO()
            spool.write(out, json.dumps(said))
        return out.getvalue()

    whole = partial_bytes()
    other = [np.full((4, 2), 1e6)] * 2
    files = {
        "part": whole,
        "part-2": changed(whole, {"have": [2]}),
        "changed-part": whole[:-1] + b"x",
        "lame-part": changed(whole, {"kept": "left out"}),
        "other-part": changed(whole, {"quantile": 0.5, "have": [2]}),
    }
    files["nan-part"] = changed(whole, {}, **{"5.scale": np.full(4, np.nan, np.float32)})
    files["outside-part"] = changed(whole, {}, **{"5.image": np.full((4, 3), 99, np.int64)})
    files["nameless-part"] = changed(whole, {}, images=json_tensor({"a": 1}))
    files["unread-part"] = changed(whole, {}, images=np.frombuffer(b"[", np.uint8))
    files["unsorted-part"] = changed(whole, {}, embedding_number=np.array([3, 1, 4, 2, 0]))
    files["silent-part"] = changed(whole, {}, embedding=np.zeros((5, 3), np.float32))
    files["earlier-part"] = changed(whole, {}, ("embedding", "embedding_number"))
    files["far-part"] = changed(whole, {"have": [2]}, **{"5.centre": other[0], "6.centre": other[1]})
    parts, body = apart(whole)
    parts["5.near_norm"]["data_offsets"] = parts["5.lost"]["data_offsets"]
    parts["5.near_norm"]["shape"] = parts["5.lost"]["shape"]
    files["overlap-part"] = together(parts, body)
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)


def make_texts(folder: Path, model: dict[str, Any]) -> None:
    """Write lines and tables."""
    named = {key: model[key] for key in ("name", "pretrained", "sha256")}
    word = {"pair": "panda->cat", "depict": "panda", "predict": "cat", "rank": 1, "word": "rocket", "model": named}
    image = {"image": "a.png", "model": named}
    group = {"concept": "cat", "group": "a", "images": 3, "mean": 0.5, "spread": 0.1, "skewness": 0.0}
    records: dict[str, list[Any]] = {
        "words": [word],
        "image": [image],
        "list": [image | {"concepts": [5]}],
        "rank": [word | {"rank": "first"}],
        "numbers": [5],
        "modelless": [word | {"model": {}}],
        "architecture": [word | {"model": named | {"architecture": 5}}],
        "models": [word, word | {"model": named | {"sha256": "7"}}],
        "nan": [{"a": float("nan")}],
        "foreign": [word | {"model": named | {"name": "ViT-B-32"}}],
        "same": [word | {"word": "cat"}],
        "elsewhere": [image | {"model": named | {"name": "other", "sha256": "7"}}],
        "computed": [image | {"model": named | {"architecture": "7" * 64}}],
        "half": [{"group": "a"}],
        "twice": [group, group],
        "files": [word | {"file": "bad/broken.png"}],
        "captions": [word | {"description": "a panda and a rocket", "caption": 0}] * 2,
        "group": [group],
        "truth": [{"key": "z", "names": ["cat"]}],
        "two-truths": [{"key": "a", "names": [each]} for each in ("cat", "dog")],
    }
    for name, lines in records.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = {
        "empty": "",
        "notes.txt": "hello\nthere, you\nall\n",
        "nul.txt": "a\0b\n",
        "long.txt": "x" * 20_000,
        "one.txt": "cat\n",
        "two.txt": "cat\ndog\n",
        "endless.txt": "x" * ((1 << 20) + 1),
        "twice.txt": "cat\ncat\n",
        "comma.txt": ",\n",
        "long-line": "x" * ((1 << 24) + 9),
        "endless-cell.txt": "x" * 200_000,
        "caffe.txt": "a.png 0\nb.png 7\n",
        "caffe-twice.txt": "a.png 0\na.png 1\n",
        "kit.txt": "1\n2\n",
        "endingless.txt": "a 0\nb 1\n",
        "table.csv": "image,group,cat\na.png,x,1\nb.png,y,0\n",
        "groupless.csv": "image,group\na.png,x\nb.png,\n",
        "head.csv": "image,group\n",
        "twice.csv": "image,group\na.png,x\na.png,y\n",
        "short.csv": "image,group\na.png\n",
        "quote.csv": 'image,group\n"a.png,x\n',
        "maybe.csv": "image,cat\na.png,maybe\nb.png,1\n",
        "gts.mat": "nothing",
        "shared.txt": "cat, feline\nlion, feline\n",
        "pairs-twice.csv": "cat,dog\ncat,dog\n",
        "remarks.txt": "# cat\n",
        "unclear.txt": "dog # man's best friend\n",
        "two-ids.json": '[["n01440764", "n01443537", "tench"]]',
        "fraction.json": "[1.5, 2.5]",
        "some-ids.json": '[["n01440764", "tench"], ["goldfish"]]',
        "one-number.json": '{"0": "cat", "1": "dog", "01": "bird"}',
        "ids.txt": "n99999999\nn01440764\n",
        "braces.txt": "item {\n  name: 'cat'\n}\n",
        "unquoted.csv": "id,name\n0,tench, Tinca tinca\n",
        "open-quote.txt": 'cat\n"dog\n',
        "unclosed.csv": "id,name\n0,cat\n" + "1," + "x" * 200_000 + "\n",
        "images.csv": "image,label\na.png,cat\n",
        "nameless.csv": "id,name\n0,cat\n1,\n",
        "two-numbers.csv": "id,train_id,name\n7,0,road\n8,1,sidewalk\n",
        "two-names.csv": "id,label,class\n0,cat,mammal\n",
        "no-names.csv": "id,width\n0,3\n1,4\n",
        "weak.txt": "3 musketeers\n7 dwarfs\n",
        "behind.txt": "tench 0\ngoldfish 1\n",
        "some.txt": "n01440764 tench\ngoldfish\n",
        "text.json": '"cat"',
        "cut.json": '["cat", "dog"',
        "numpy.txt": "['cat' 'dog']",
        "constants.py": "a = ['cat']\nb = ['dog']\n",
        "set.txt": "{'cat', 'dog'}",
        "call.txt": "['cat', str(5)]",
        "flow.yaml": "names: [cat, dog",
        "none.json": "[]",
        "several.json": '{"cifar10": ["cat"], "pets": ["dog"]}',
        "objects.json": '{"0": {"name": "cat"}, "1": "dog"}',
        "names.json": '{"cat": "Katze", "dog": "Hund"}',
        "kinds.json": '[{"name": "cat"}, "dog"]',
        "field-twice.json": '[{"name": "cat", "name": "dog"}]',
        "one-line.txt": "cat, dog, owl\n",
        "breeds.csv": "breed,origin\nbeagle,England\npug,China\n",
        "blank-id.csv": "id,name\n3,cat\n,dog\n",
        "deep.json": '{"features": {"fine": {"names": ["a"]}, "coarse": {"names": ["b"]}}}',
        "pointer.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "gaps.txt": "1: cat\n5: dog\n",
        "from-0.txt": "0: cat\n1: dog\n",
        "ground.txt": "background\ncat\ndog\n",
        "quoted-head.csv": '"image"x,group\n',
        "left.safetensors.part": "{}\n",
        "broken.safetensors.part": "[]\n",
        "kept.jsonl.part": "5\n",
        "stranger.jsonl.part": json.dumps({"image": "stranger.png"}) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes(b"cat\ncaf\xe9\n")


def make_segmentation(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    """Write one image with its mask as in gtsegs_ijcv.mat: by reference, with swapped axes."""
    with h5py.File(path, "w") as file:
        file["image"], file["mask"] = image, mask
        for name, value in (("cell", file["mask"].ref), ("value/img", file["image"].ref)):
            file.create_dataset(name, (1, 1), h5py.ref_dtype)[0, 0] = value
        file.create_dataset("value/gt", (1, 1), h5py.ref_dtype)[0, 0] = file["cell"].ref


def make_pictures(folder: Path) -> None:
    """Write folders and archives of images."""
    folders: dict[str, tuple[str, ...]] = {
        "cranes": ("crane/a.png", "dog/b.png"),
        "ambiguous": ("images/a.png", "images/a.jpg", "masks/a.png"),
        "pairs": ("images/a.png", "images/b.png"),
        "photos": ("a.png", "b.png"),
        "none": (),
        "animals": ("cat/a.png", "xyzzy/b.png"),
        "numbered": ("0/a.png", "1/b.png"),
        "wordnet": ("n00000001/a.png", "n00000002/b.png"),
        "beside": ("a.png", "cat/a.png", "dog/b.png"),
        "unmasked": ("images/a.png",),
        "masked": (),
    }
    for name, files in folders.items():
        (folder / name).mkdir()
        for number, file in enumerate(files):
            (folder / name / file).parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), (90 * number, 40, 200)).save(folder / name / file)
    for name in (
        "masked/images",
        "masked/masks",
        "unmasked/masks",
        "bad",
        "mixed",
        "masks-damaged",
        "masks-outside",
        "torn",
        "sceneless",
    ):
        (folder / name).mkdir()
    (folder / "bad" / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64), "red").save(folder / "mixed" / "a.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "mixed" / "b.png")
    (folder / "mixed" / "nothing.png").write_bytes(b"")
    Image.new("RGB", (500, 1)).save(folder / "mixed" / "line.png")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folder / "mixed" / "nan.tif")
    (folder / "masks-damaged" / "segments.json").write_text("[")
    outside = {"image": "a.png", "text": "cat", "score": 1, "share": 1, "overlay": "../photos/a.png"}
    (folder / "masks-outside" / "segments.json").write_text(json.dumps([outside]))
    (folder / "finished" / "a.png").mkdir(parents=True)
    (folder / "finished" / "a.png" / "segments.json").write_text("[")
    for name in ("unreadable", "strangers", "high", "coloured", "kit", "bad-animals/cat", "bad-animals/dog", "pairs/masks"):
        (folder / name).mkdir(parents=True)
    for name in ("unreadable/a.png", "unreadable/b.png", "unreadable/c.png", "bad-animals/cat/a.png", "bad-animals/dog/b.png"):
        (folder / name).write_bytes(b"no picture")
    Image.new("L", (8, 8)).save(folder / "pairs" / "masks" / "a.png")
    (folder / "pairs" / "masks" / "b.png").write_bytes(b"no picture")
    with h5py.File(folder / "bare.mat", "w"):
        pass
    make_segmentation(folder / "sizes.mat", np.zeros((3, 8, 8), np.uint8), np.ones((9, 8), np.uint8))
    make_segmentation(folder / "flat.mat", np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8))
    make_segmentation(folder / "huge.mat", np.full((3, 8, 8), 10**6, np.int32) * (np.arange(8) > 3), np.ones((8, 8), np.uint8))
    with h5py.File(folder / "cellless.mat", "w") as file:
        for name in ("img", "gt"):
            file[f"value/{name}"] = np.zeros((1, 1))
    make_masks(folder / "cut-masks")
    (folder / "cars" / "devkit").mkdir(parents=True)
    savemat(folder / "cars" / "devkit" / "cars_meta.mat", {"class_names": np.array([["Audi TT 2011"]], object)})
    (folder / "swollen").mkdir()
    text = png_chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(2 << 20))
    (folder / "swollen" / "a.png").write_bytes(png(8, 8, 8, 0, deflated_zeros(72), text))
    for name, size in (("plain/images/a.png", 64), ("plain/masks/a.png", 64), ("poor/a.png", 8)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (size, size)).save(folder / name)
    (folder / "poor" / "b.png").write_bytes(b"no picture")
    (folder / "kit" / "kit.txt").write_text("1\n2\n")
    (folder / "kit" / "meta.mat").write_bytes(b"nothing")
    Image.new("L", (64, 64)).save(folder / "strangers" / "z.png")
    Image.new("L", (64, 64), 77).save(folder / "high" / "a.png")
    Image.new("RGB", (64, 64)).save(folder / "coloured" / "a.png")
    Image.new("L", (64, 64)).save(folder / "coloured" / "b.png")
    (folder / "torn" / "images.jsonl").write_text("{}\n")
    (folder / "sceneless" / "scenes.jsonl").write_text("{}\n")
    make_archives(folder, (folder / "photos" / "a.png").read_bytes())


def make_masks(folder: Path) -> None:
    """Write masks, most of which do not identify the object."""
    half = np.zeros((64, 64), np.uint8)
    half[20:40] = 255
    red = Image.fromarray(np.stack([half, half // 2, half * 0], -1))
    clear = np.stack([half, half // 2, half * 0, half * 0 + 255], -1)
    clear[30:40, 8:, 0], clear[:, :4, 3] = 100, 0
    reals = {
        name: np.where(half > 0, value, 0).astype(np.float32)
        for name, value in (("nan", np.nan), ("range", 300.5), ("below", -1))
    }
    masks = {f"{name}.tif": Image.fromarray(values) for name, values in reals.items()}
    masks |= {"void.png": Image.new("L", (64, 64)), "grey.png": Image.fromarray(half), "colours.png": red, "smeared.jpg": red}
    masks["clear.png"] = Image.fromarray(clear)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name, mask in masks.items():
        mask.save(folder / "masks" / name)
    (folder / "masks" / "broken.png").write_bytes(b"no picture")
    for name in (*masks, "broken.png"):
        Image.new("RGB", (64, 64), "red").save(folder / "images" / f"{name.partition('.')[0]}.png")


def make_archives(folder: Path, picture: bytes) -> None:
    """Write tars of one picture, some of them truncated or damaged."""
    tars = {
        "bare": {"a.png": picture},
        "latin": {"a.png": picture, "a.cls": b"caf\xe9"},
        "json": {"a.png": picture, "a.json": b"["},
        "nan": {"a.png": picture, "a.json": b'{"label": NaN}'},
        "labels": {"a.png": picture, "a.cls": b"0", "a.json": b'{"label": "dog"}'},
        "two": {"a.png": picture, "a.json": b'{"names": ["cat", "dog"]}'},
    }
    for name, members in tars.items():
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    whole = (folder / "bare.tar").read_bytes()
    (folder / "endless.tar").write_bytes(whole[:1024])
    (folder / "cut.tar").write_bytes(whole[:600])
    (folder / "damaged.tar").write_bytes(whole[:1024] + b"x" * 2048)
    (folder / "damaged.gz").write_bytes(gzip.compress(whole)[:-30])
