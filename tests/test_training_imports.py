"""The parts of training: what each takes from others runs one way, by public names, in the open."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent / "training"
# Heavy or optional: loaded by whoever needs them, when they are needed.
LATE = (
    "datasets",
    "peft",
    "ray",
    "rouge_score",
    "sacrebleu",
    "tokenizers",
    "torch",
    "transformers",
)
FILES = {
    ".".join(["tunecast.training", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(source: str) -> Iterator[tuple[str, str, bool]]:
    """Yield each module that is imported, the name taken from it, and whether at once."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            for item in node.names:
                yield node.module or "", item.name, not node.col_offset
        elif isinstance(node, ast.Import):
            for item in node.names:
                yield item.name, "", not node.col_offset


def parts_of(source: str) -> set[str]:
    """Return the parts of training that a source takes from."""
    found = set()
    for module, name, _ in imports(source):
        whole = f"{module}.{name}"
        found |= {whole if whole in FILES else module} & FILES.keys()
    return found


def circle_in(needs: dict[str, set[str]]) -> list[str]:
    """Return some parts that need each other in turn, none if there are none."""
    free: set[str] = set()
    while found := {part for part in needs if part not in free and needs[part] <= free}:
        free |= found
    return sorted(needs.keys() - free)


def test_what_parts_need_of_each_other_runs_one_way() -> None:
    needs = {part: parts_of(path.read_text()) for part, path in FILES.items()}
    assert max(map(len, needs.values())) > 5
    assert circle_in(needs) == []
    assert circle_in({"a": {"b"}, "b": {"a"}, "c": set()}) == ["a", "b"]


def test_names_are_public_and_only_heavy_packages_come_late() -> None:
    for part, path in FILES.items():
        for module, name, at_once in imports(path.read_text()):
            assert not name.startswith("_"), f"{part} takes {name} from {module}"
            # SQLAlchemy stands behind the database of the run table.
            late = module.split(".")[0] in LATE or module == "tunecast.models.runs.database"
            assert at_once or late, f"{part} imports {module} inside a function"


def test_a_file_is_of_a_size_that_is_read_at_once() -> None:
    lengths = {part: len(path.read_text().splitlines()) for part, path in FILES.items()}
    assert max(lengths.values()) <= 400
    assert median(lengths.values()) < 200
