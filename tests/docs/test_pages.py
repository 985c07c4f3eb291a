"""Every command and snippet of the documentation is run, or the page says in a comment why it is not.

A new page needs nothing here: it is run as it stands. ``SHORTER`` makes long commands short, and gives a page what it
takes for granted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, RUN, SHOWN, Scratch, blocks_in, blocks_of, extended, pages, to_run

# What a reason may begin with: things that a machine of two cores without a network does not have.
REASONS = (
    "needs a GPU",
    "needs a cluster",
    "needs Docker",
    "needs several machines",
    "needs the network",
    "needs data",
    "takes 8 GB",
    "never ends",
)
# Pages that a test of their own runs, with answers that it knows.
ELSEWHERE = {
    "docs/bulk.md": "tests/docs/test_bulk.py",
    "docs/examples.md": "tests/examples/test_page.py",
    "docs/explanation/protocols.md": "tests/docs/test_explanations.py",
    "docs/serving.md": "tests/serve/test_serving_page.py",
    "docs/tutorial.md": "tests/docs/test_tutorial.py",
    "docs/how-to/add-a-backend.md": "tests/docs/test_extensions.py",
    "docs/how-to/add-a-benchmark.md": "tests/docs/test_extensions.py",
    "docs/how-to/add-a-teacher.md": "tests/docs/test_extensions.py",
}


@dataclass(frozen=True)
class Shorter:
    """Options that end a page's commands early, and a script that makes what the page says is there."""

    options: Mapping[str, str] = field(default_factory=dict)
    before: str = ""


STEPS = {f"-m train.{name}": "--steps 2" for name in ("pretrain", "finetune", "zeroshot")}
SEGMENTS = {
    "-m train.segment": "--steps 2",
    "-m train.segment --encoder": "--eval-scenes 8",  # of scenes only
    "-m train.segment b16_in1k --miniature": "--eval-scenes 8",
}
ABLATION = (
    "--steps 2 --finetune-steps 2 --tune-steps 2 --timed-steps 1 --seeds 1 --equal steps --no-scratch --threads 1"
)
EVALUATION = {f"-m evaluate.{name}": "--limit 8" for name in ("robustness", "zeroshot", "knn", "segmentation")}
EXPORT = {"-m export": "--parity-images 64"}
PRETRAINED = "python -m train.pretrain --steps 2\n"
CLASSIFIER = "mkdir -p {0} && cp digpt/bundled/emoji-tiny/ckpt.pt {0}/{1}\n"
EXPORTED = "python -m export bundled --to onnx --output runs/onnx --parity-images 64\n"
# The ImageNet family, ADE20K and masks of one's own, a few pictures each.
IMAGENET = """python - <<'END'
from pathlib import Path
from digpt.testing_trees import write_imagenet_tree
write_imagenet_tree(Path("data"), per_class=20)
END
"""
MASKS = """python - <<'END'
from pathlib import Path
from PIL import Image
from digpt.data.emoji import EmojiSet
from digpt.data.scenes import SceneSet
folders = {
    "my-pictures/images": "my-pictures/masks",
    "data/ADEChallengeData2016/images": "data/ADEChallengeData2016/annotations",
}
scenes = SceneSet(EmojiSet.load(), "train", size=96)
for images, masks in folders.items():
    for split in ("training", "validation"):
        for number, pair in enumerate(map(scenes.pixels, range(4))):
            for folder, pixels in zip((images, masks), pair):
                path = Path(folder, split, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
END
"""
SHARDS = """python - <<'END'
import tarfile
from pathlib import Path
Path("shards").mkdir()
for number in range(2000):
    with tarfile.open(f"shards/{number:05d}.tar", "w", dereference=True) as shard:
        shard.add("examples/images/rocket.png", f"{number}.png")
END
"""
TARS = """mkdir -p data/imagenet21k
tar -chf data/imagenet21k/n00001740.tar -C examples/images rocket.png
"""
SHORTER = {
    "CONTRIBUTING.md": Shorter(before="git init --quiet\n"),
    "README.md": Shorter(
        STEPS | EXPORT | {"-m evaluate.robustness": "--limit 8 --output runs/robustness", "-m train.ablate": ABLATION},
        "python -m evaluate.robustness bundled --limit 8 --output runs/torch\n"
        "cp -r runs/torch runs/again\n"
        "python -m evaluate.compare runs/torch runs/again --same --output runs/drift\n",
    ),
    "docs/data.md": Shorter(
        STEPS | {"-m train.pretrain": "--miniature --steps 2"},
        "python examples/drawings.py all-pictures\n" + IMAGENET + TARS,
    ),
    "docs/data-evaluation.md": Shorter(before=IMAGENET),
    "docs/evaluation.md": Shorter(
        {
            "-m evaluate.robustness runs/finetune/ckpt.pt --data-root data": "--templates plain",
            "-m evaluate.robustness http://127.0.0.1:8000": "--limit 8",
        },
        EXPORTED
        + IMAGENET
        + CLASSIFIER.format("runs/finetune", "ckpt.pt")
        + "python -m evaluate.robustness runs/finetune/ckpt.pt --data-root data --templates plain"
        " --output runs/rob-before\n"
        "python -m evaluate.robustness runs/onnx --limit 8 --output runs/robustness\n"
        "for engine in torch onnx openvino openvino-bf16; do\n"
        "    mkdir -p runs/sweep && cp -r runs/robustness runs/sweep/$engine\n"
        "done\n",
    ),
    "docs/export.md": Shorter(
        {"-m export": "--overwrite", "-m evaluate.robustness": "--limit 8"},
        CLASSIFIER.format("runs/zeroshot", "ckpt.pt"),
    ),
    "docs/how-to/deploy.md": Shorter(EXPORT | {"-m evaluate.robustness": "--limit 8"}),
    "docs/how-to/embed-a-billion.md": Shorter(EXPORT, SHARDS),
    "docs/how-to/evaluate-my-checkpoint.md": Shorter(
        {
            "-m train.finetune": "--steps 60",
            "-m evaluate.robustness bundled --data folder:my-pictures --output": "--limit 40",
            "-m evaluate.robustness runs/mine/ckpt.pt": "--limit 40",
        }
    ),
    "docs/how-to/reproduce.md": Shorter(
        STEPS | EVALUATION | {"-m evaluate.robustness": "--limit 8 --templates plain"},
        IMAGENET + CLASSIFIER.format("runs/b16_in1k/finetune", "best.pt"),
    ),
    "docs/model-cards.md": Shorter(EXPORT | EVALUATION),
    "docs/observability.md": Shorter({"-m benchmarks.observe": "--requests 50 --rounds 1"}),
    "docs/passport.md": Shorter(EXPORT | EVALUATION),
    "docs/results.md": Shorter(EVALUATION, PRETRAINED),
    "docs/segmentation.md": Shorter(
        STEPS
        | SEGMENTS
        | EVALUATION
        | {"-m train.segment b16_in1k --data ade20k:data": "--miniature --output runs/b16_in1k/segment"},
        PRETRAINED + MASKS + "cp examples/images/rocket.png street.jpg\n",
    ),
}
RUN_HERE = [page for page in pages() if to_run(page) and page not in ELSEWHERE]
COMMAND = re.compile(r"^(\$ |python3? |make |curl |pip |docker |kubectl |git )", re.MULTILINE)


def test_every_block_is_run_or_says_why_not() -> None:
    wrong = []
    for page in pages():
        for block in blocks_of(page):
            where = f"{page}:{block.line}"
            if block.reason is not None and not block.reason.startswith(REASONS):
                wrong.append(f"{where}: a reason begins with one of REASONS, not {block.reason!r}")
            elif block.language not in RUN + SHOWN:
                wrong.append(f"{where}: the language {block.language!r} is neither run nor shown")
            elif block.language == "" and COMMAND.search(block.text):
                wrong.append(f"{where}: commands without a language are not run: call it sh or console")
            elif block.language == "console" and block.reason is None and not block.script:
                wrong.append(f"{where}: a console without a line after $")
    assert wrong == []


def test_every_comment_stands_on_a_block() -> None:
    """One that slipped away from its block excuses nothing."""
    for page in pages():
        comments = re.findall(r"^ *<!-- not run:", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert sum(block.reason is not None for block in blocks_of(page)) == len(comments), page


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_that_are_run_elsewhere_are(page: str) -> None:
    assert to_run(page)
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")


def test_blocks_are_read_with_their_reasons() -> None:
    indented = "1. x\n\n   <!-- not run: needs a GPU -->\n   ```console\n   $ d\n   e\n   ```\n"
    text = "A\n```sh\na \\\n  b\nc\n```\n" + indented + "```json\n{}\n```\n"
    first, second, third = blocks_in(text)
    assert (first.line, first.language, first.script, first.reason) == (2, "sh", "a    b\nc\n", None)
    assert (second.line, second.text, second.script, second.reason) == (10, "$ d\ne\n", "d\n", "needs a GPU")
    assert (third.language, third.text) == ("json", "{}\n")


def test_a_command_is_refused_with_the_line_shown(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    page = "```console\n$ echo 'error: No.' >&2; exit 2\n{}\n```\n"
    assert scratch.run(blocks_in(page.format("error: No."))[0]) == ""
    for other in ("error: Never.", "done"):
        with pytest.raises(AssertionError, match="error: No"):
            scratch.run(blocks_in(page.format(other))[0])
    with pytest.raises(AssertionError):  # what is shown as refused is not done
        scratch.run(blocks_in(page.format("error: No.").replace("exit 2", "exit 0"))[0])


def test_options_go_to_the_end_of_their_command() -> None:
    options = {"-m train.pretrain": "--steps 2", "-m export": "--limit 8"}
    script = "python -m train.pretrain b16 && python -m train.segment x  # a\npython -m train.pretrain  # b\n"
    assert extended(script, options) == (
        "python -m train.pretrain b16 --steps 2 && python -m train.segment x  # a\n"
        "python -m train.pretrain --steps 2  # b\n"
    )
    assert extended("python -m export.card x | tee y\npython -m export x | tee y\n", options) == (
        "python -m export.card x | tee y\npython -m export x --limit 8 | tee y\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN_HERE)
def test_a_page_runs_as_it_stands(page: str, tmp_path: Path) -> None:
    shorter = SHORTER.get(page, Shorter())
    scratch = Scratch(tmp_path)
    try:
        if "folder:my-pictures" in "".join(block.text for block in to_run(page)):
            scratch.run(next(block for block in to_run("docs/tutorial.md") if block.language == "python"))
        scratch.run(blocks_in(f"```sh\n{shorter.before}```\n")[0])
        scratch.options = shorter.options
        for block in to_run(page):
            scratch.run(block)
    finally:
        scratch.close()
