"""Shell completion: from the commands themselves, and in running bash, zsh and fish."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.shell_completion import FishComplete
from conftest import Run
from helpers import ROOT
from helpers.bundle import small_bundle

from cliptools.cli.completion import COMPLETED
from cliptools.cli.surroundings import OWN_VARIABLE
from cliptools.embedded_models import embedded_names
from cliptools.models.names import architecture_names, layer_count, pretrained_tags
from tools.manual.completion import all_scripts
from tools.manual.pages import suite

COMMANDS = suite(ROOT)
NOT_TOLD = {
    "units", "word", "keep", "explained", "residual", "templates", "prefix", "emoji", "caption", "text", "texts", "depict",
    "predict", "exclude", "concepts", "image_column", "group_column", "label_column", "components", "m", "shard", "block",
    "delete", "sees", "writes", "train_sizes",
}  # fmt: skip
"""Texts of which no shell can know what they will be."""
ENVIRONMENT = os.environ | {
    "PATH": f"{ROOT / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}


def offered(line: str, cwd: Path | None = None) -> list[str]:
    """Return click's completion of this line as `type,word`, with the cursor at its end."""
    name = line.split(maxsplit=1)[0]
    typed = "" if line.endswith(" ") else line.rsplit(maxsplit=1)[-1]
    asked = pytest.MonkeyPatch()
    with asked.context() as patch:
        patch.setenv("COMP_WORDS", line)
        patch.setenv("COMP_CWORD", typed)
        if cwd:
            patch.chdir(cwd)
        answer = FishComplete(COMMANDS[name], {}, name, "").complete()
    return [item.split("\t")[0].removeprefix("plain,") for item in answer.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("completion")
    bundle = small_bundle(units=3, words=True)
    header = replace(bundle.header, settings=bundle.header.settings | {"layers": [2, 3]})
    (place / "neurons.safetensors").write_bytes(replace(bundle, header=header).to_bytes())
    (place / "emoji list.txt").touch()
    (place / "photos").mkdir()
    return place


def test_scripts_are_those_that_are_made() -> None:
    made = dict(all_scripts(COMMANDS))
    folder = ROOT / "completion"
    lying = {path.relative_to(folder).as_posix() for path in folder.glob("*/clip-*")} | {"zsh/_cliptools"}
    assert {name: (folder / name).read_text(encoding="ascii") for name in lying} == made, "run make man"


def test_every_text_is_told_or_cannot_be() -> None:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if type(parameter.type) is type(click.STRING) and not parameter.multiple:
                assert parameter.name in NOT_TOLD, f"{name} {parameter.name}: say in COMPLETED what a shell can offer"
    assert not NOT_TOLD & set(COMPLETED)


def test_options_and_choices() -> None:
    assert offered("clip-view --so") == ["--sort"]
    assert offered("clip-view --sort re") == ["residual"] and offered("clip-view --sort=no") == ["norm"]
    assert {"--bundle", "--pretrained"} & set(offered("clip-effects --p")) == {"--pretrained"}


def test_models_and_their_weights() -> None:
    assert offered("clip-effects --model emoji-") == list(embedded_names()) == ["emoji-rn2", "emoji-vit2"]
    assert "RN50x64" in offered("clip-effects --model RN5") and offered("clip-effects --model convnext") == []
    assert offered("clip-effects --model RN50 --pretrained y") == ["yfcc15m", "file,y"]
    assert offered("clip-effects --pretrained r") == ["random", "file,r"]
    assert offered("clip-effects --model RN50 --preprocess ")[:4] == ["openai", "yfcc15m", "cc12m", "mean=openai"]
    assert offered("clip-effects --preprocess mean=0.5,r") == [
        f"mean=0.5,resize={mode}" for mode in ("shortest", "longest", "squash")
    ]
    assert offered("clip-effects --preprocess mean=0.5,m") == [] and "RN" not in offered("clip-effects --preprocess ")
    assert offered("clip-advgen --judge RN50:openai --judge-preprocess o") == ["openai"]


def test_names_are_open_clips() -> None:
    """The names are the same as in open_clip after its import."""
    import open_clip

    assert len(architecture_names()) > 40 and set(architecture_names()) <= set(open_clip.list_models())
    for name in open_clip.list_models():
        assert list(pretrained_tags(name)) == open_clip.list_pretrained_tags_by_model(name), name
        layers = open_clip.get_model_config(name)["vision_cfg"].get("layers")
        assert layer_count(name) == (layers if isinstance(layers, int) else 0)
    assert pretrained_tags("no-such-model") == () and layer_count("no-such-model") == 0


def test_pools_classes_and_lists() -> None:
    assert offered("clip-decompose --pool w") == ["words10k", "words30k", "file,w"]
    assert offered("clip-spurious --classes imagenet") == ["imagenet", "imagenet-r", "file,imagenet"]
    assert offered("clip-spurious --pairs c") == ["cifar10", "file,c"]
    assert offered("clip-ablate --ablate all,s") == ["all,small"]
    assert offered("clip-ablate --ablate large,all,l") == []
    assert offered("clip-ablate --reconstruct ") == ["pc", "words"]
    assert "template" in offered("clip-advgen --llm ") and offered("clip-texts --llm ") == ["smollm2", "file,"]
    assert offered("clip-advgen --painter ") == ["emoji", "dir,"] and offered("clip-effects ph") == ["file,ph"]


def test_layers_of_a_model_or_of_a_bundle(folder: Path) -> None:
    assert offered("clip-effects --layers ") == [*map(str, range(8))]
    assert offered("clip-effects --model RN50 --layers ") == []
    assert offered("clip-effects --layers 5-") == ["5-6", "5-7"]
    assert offered("clip-effects --layers 1,2-5,6-") == ["1,2-5,6-7"] and offered("clip-effects --layers x-") == []
    assert offered("clip-view neurons.safetensors --layers ", folder) == ["2", "3"]
    assert offered("clip-top --bundle neurons.safetensors --layers 3,", folder) == ["3,2"]
    assert offered("clip-view --layers ") == [] and offered(f"clip-view {ROOT / 'LICENSE'} --layers ") == []
    model = small_bundle(units=3, words=True).header.model["name"]
    assert offered("clip-decompose neurons.safetensors --model ", folder) == [model]


@pytest.mark.parametrize(
    "line",
    [
        "clip-effects --model ", "clip-effects --model RN50 --pretrained ", "clip-effects --layers ", "clip-decompose --pool ",
        "clip-texts --classes ", "clip-ablate --ablate ", "clip-advgen --llm ",
    ],
)  # fmt: skip
def test_nothing_that_takes_time_is_imported(line: str) -> None:
    name = line.split(maxsplit=1)[0]
    code = (
        "import sys\n"
        f"from cliptools.cli.{name[5:].replace('-', '_')} import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'open_clip', 'PIL', 'rich', 'safetensors'} & set(sys.modules)"
    )
    asked = {f"_{name.upper().replace('-', '_')}_COMPLETE": "fish_complete", "COMP_WORDS": line, "COMP_CWORD": ""}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=os.environ | asked, check=False)
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) >= 3, ended.stderr.decode()


def test_no_option_takes_a_value_that_says_nothing_or_that_no_bundle_holds() -> None:
    checked = 0
    for name, command in COMMANDS.items():
        for option in command.params:
            if not isinstance(option, click.Option) or option.multiple or option.is_flag:
                continue
            values = {"text": ("", " "), "float": ("nan", "inf", "1e400"), "integer": (str(1 << 63), str(10**30))}
            kind = option.type.name.removesuffix(" range")
            for value in values.get(kind, ()):
                with pytest.raises(click.BadParameter):
                    option.type.convert(value, option, None)
                    pytest.fail(f"{name} {option.opts[0]} takes {value!r}")
                checked += 1
    assert checked > 300


def test_environment_goes_by_the_name_that_is_typed(run: Run, folder: Path) -> None:
    for name, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.expose_value:
                first = next(word for word in option.opts if word.startswith("--"))
                typed = first[2:].upper().replace("-", "_")
                own = f"{name.removeprefix('clip-').replace('-', '_').upper()}_" if typed in OWN_VARIABLE else ""
                assert option.envvar == f"CLIPTOOLS_{own}{typed}", f"{name} {first}"
    ended = run("view", folder / "neurons.safetensors", env={"CLIPTOOLS_FORMAT": "jsonl", "CLIPTOOLS_VERSION": "0.1"})
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 3


def test_usage_names_the_command_however_it_is_started(run: Run) -> None:
    assert run("view", "--no-such").stderr.startswith(b"Usage: clip-view")


BASH = r"""
source "$1"
compopt() { echo "compopt $*"; }
COMP_LINE=$2 COMP_POINT=${#2}
_cliptools "${2%% *}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clip-view --so", "--sort"),
        ("clip-effects --model=emoji-", "emoji-rn2 emoji-vit2"),
        ("clip-view neurons.safetensors --units 3:4 --sort ind", "index"),
        ("clip-decompose --pool e", "compopt -o filenames|emoji|emoji list.txt"),
        ("clip-decompose --pool words1", "compopt -o filenames|words10k"),
        ("clip-effects ph", "compopt -o default|"),
        ("clip-advgen --upscaler p", "compopt -o dirnames|"),
    ],
)
def test_bash_function(folder: Path, line: str, said: str) -> None:
    script = ROOT / "completion" / "bash" / line.split(maxsplit=1)[0]
    ended = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", script, line],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        check=True,
    )
    expected = said.split("|") if "|" in said else said.split()
    assert ended.stdout.split("\n")[:-1] == expected and not ended.stderr


def typed_into(words: list[str], setup: str, line: str, cwd: Path) -> str:
    """Return the line that an interactive shell makes of a line and a tab: the shell runs it with `echo RESULT ` before it."""
    terminal, end_of_shell = pty.openpty()
    ends = {"stdin": end_of_shell, "stdout": end_of_shell, "stderr": end_of_shell}
    shell = subprocess.Popen(words, cwd=cwd, env=ENVIRONMENT, start_new_session=True, **ends)
    os.close(end_of_shell)
    seen = ""

    def wait_for(pattern: str) -> str:
        nonlocal seen
        end = time.monotonic() + 20
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        return found[1]

    try:
        os.write(terminal, f"{setup}; echo rea''dy=\n".encode())
        wait_for("(ready=\r\n)")
        os.write(terminal, f"{line}\t\x01echo RES''ULT \x05=\n".encode())  # \x01, \x05: to the line's beginning and end
        return wait_for("RESULT (.*?) ?=\r\n")
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def test_bash_as_it_is_used(folder: Path) -> None:
    setup = f"set -o emacs; source {ROOT}/completion/bash/clip-view"
    words = ["bash", "--norc", "--noprofile", "-i"]
    assert typed_into(words, setup, "clip-view --so", folder) == "clip-view --sort"
    assert typed_into(words, setup, "clip-view neu", folder) == "clip-view neurons.safetensors"
    assert typed_into(words, setup, "clip-view --units 3:4 --layers", folder) == "clip-view --units 3:4 --layers"


def test_zsh_as_it_is_used(folder: Path) -> None:
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    setup = f"bindkey -e; fpath=({ROOT}/completion/zsh $fpath); autoload -Uz compinit; compinit -u -D"
    for line, expected in [
        ("clip-view --so", "clip-view --sort"), ("clip-view neu", "clip-view neurons.safetensors"),
        ("clip-effects --model=emoji-v", "clip-effects --model=emoji-vit2"),
        ("clip-decompose --pool words1", "clip-decompose --pool words10k"),
    ]:  # fmt: skip
        assert typed_into(["zsh", "-f", "-i"], setup, line, folder) == expected


def test_fish_as_it_is_used(folder: Path) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    functions = ROOT / "completion" / "fish-functions"
    for line, expected in [
        ("clip-view --so", "--sort\tOrder of the units."), ("clip-effects --model=emoji-v", "--model=emoji-vit2"),
        ("clip-view ne", "neurons.safetensors"), ("clip-effects --layers 1,2-5,6-", "1,2-5,6-7"),
        ("clip-effects - | clip-decompose --pool words1", "words10k"), ("clip-advgen --painter p", "photos/"),
    ]:  # fmt: skip
        name = line.split("| ")[-1].split()[0]
        sourced = f"set fish_function_path {functions} $fish_function_path; source {ROOT}/completion/fish/{name}.fish"
        ended = subprocess.run(
            ["fish", "--no-config", "-c", f"{sourced}; complete -C '{line}'"],
            capture_output=True,
            text=True,
            cwd=folder,
            env=ENVIRONMENT,
            check=True,
        )
        assert expected in ended.stdout.splitlines(), f"{line}: {ended.stdout}{ended.stderr}"


def test_a_variable_means_one_thing(run: Run, folder: Path) -> None:
    """Options of one name with different values have separate variables, except for lists of a value that is single elsewhere."""
    kinds: dict[str, dict[str, str]] = {}
    for name, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.expose_value and not isinstance(option.type, click.Path):
                kind = f"{getattr(option.type, 'choices', option.type.name)}"
                kinds.setdefault(str(option.envvar), {})[name] = kind
    differing = {variable for variable, by in kinds.items() if len(set(by.values())) > 1}
    assert differing <= {"CLIPTOOLS_FORMAT", "CLIPTOOLS_SORT", "CLIPTOOLS_M", "CLIPTOOLS_COMPONENTS"}

    plain = run("segment", "--text", "dog", "x.png", env={"CLIPTOOLS_METHOD": "textspan"})
    assert plain.returncode == 2 and b"CLIPTOOLS_METHOD is not read" in plain.stderr
    assert plain.stderr.rstrip().endswith(b"set CLIPTOOLS_SEGMENT_METHOD")
    for name in ("spurious", "concepts"):
        assert f"CLIPTOOLS_{name.upper()}_NEURONS" in run(name, env={"CLIPTOOLS_NEURONS": "3"}).stderr.decode()
    wrong = run("decompose", folder / "neurons.safetensors", env={"CLIPTOOLS_DECOMPOSE_METHOD": "pursuits"})
    assert wrong.returncode == 2 and b"--method" in wrong.stderr
    assert run("view", folder / "neurons.safetensors", env={"CLIPTOOLS_METHOD": "textspan", "CLIPTOOLS_BY": "x"}).returncode == 0
