"""``python -m tests.mutants.native``: the same for the native engine: plant a fault in its C++, build it, demand a failure.

There is no syntax tree of C++ here, so a fault is a piece of code, whatever its spaces, that stands in one place.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import hatch_build
from tests.mutants.__main__ import KILLED, SURVIVED, copy_package, pytest_in
from tests.mutants.planting import ROOT

FOLDER = hatch_build.FOLDER
TESTS = tuple(
    f"tests/{name}"
    for name in (
        "test_native.py",
        "test_unit.py",
        "test_known_pairs.py",
        "test_contrast.py::test_matches_loops",
        "test_contrast.py::test_no_overflow_at_tiny_temperatures",
        "test_contrast.py::test_no_logit_is_lost_among_what_does_not_count",
        "test_contrast.py::test_ids_of_both_zeros_are_one",
        "test_contrast.py::test_what_arrives_in_rows_without_pairs_goes_no_further",
    )
)

FAULTS: dict[str, tuple[str, str]] = {
    "pairs of a tile on the diagonal count twice": ("t.diagonal() ? row : -1", "-1"),
    "what stands behind the last key counts": ("(key > after) & (key < end) &", "(key > after) &"),
    "the anchor's own key counts": ("key != I(a.itself ? a.itself[row] : -1)", "key != I(-1)"),
    "columns are not credited": ("if (t.mirrored) for (Kind k : BOTH)", "if (false) for (Kind k : BOTH)"),
    "sums are not brought to a new maximum": (
        "total = total * exp<Real>(all(before - peak[k]))[0] +",
        "total = total +",
    ),
    "a pair pulls at one of its points alone": (
        "x *= load(b.factor[one] + column) + a.factor[one][row + r];",
        "x *= load(b.factor[one] + column);",
    ),
    "the gradient does not go through the unit vectors": ("(dz[d] - z[d] * along)", "(dz[d])"),
    "a zero vector has a gradient": ("if (largest == 0) return Real(__builtin_inf());", "if (largest == 0) return 1;"),
    "0.0 and -0.0 are two ids": ("x += 0.0;", ""),
    "masks that differ are taken for one": ("return call.anchor_mask == call.key_mask;", "return true;"),
    "the last of the positives is left out": ("k.id[high] <= most", "k.id[high] < most"),
    "the own key is one of the negatives": ("(itself >= 0 && !positive)", "0"),
    "gradients keep the size that was taken out": ("Real(size * call.scale)", "Real(call.scale)"),
    "keys have no weights": ("Real(j < k.count ? (weight - shift) * unit() : NEVER)", "Real(j < k.count ? -shift * unit() : NEVER)"),
    "many keys at the limit overflow": ("std::log(std::max(call.m, int64_t(1)))", "0.0"),
    "anchors without negatives count in every mean": ("|| (call.negatives && !found.count[NEGATIVE])", ""),
    "groups without anchors count in the mean": ("call.weight / std::max(some, 1L)", "call.weight / call.groups"),
    "the mean has a gradient of its own": ("own * call.share[g] * *real(", "own * call.share[g] + 0 * *real("),
    "a mean that is not a number reaches rows without pairs": ("call.share && own ?", "call.share ?"),
    "the number of positives is not in the mean inside the logarithm": ("all - p + std::log(number)", "all - p"),
    "a zero vector is at its full length from itself": ("std::isinf(a.length[i]) ? 0", "false ? 0"),
    "results of later groups go to the first ones": ("finish(groups[i], first + i)", "finish(groups[i], i)"),
}  # fmt: skip


def planted(old: str, new: str) -> tuple[Path, str]:
    """The one file that holds `old`, and its text with `new` there; a LookupError for none, or for several places."""
    pattern = re.compile(r"\s*".join(re.escape(word) for word in re.findall(r"\w+|\S", old)))
    texts = {path: path.read_text() for path in sorted((ROOT / FOLDER).glob("*.cpp"))}
    found = [(path, match) for path, text in texts.items() for match in pattern.finditer(text)]
    if len(found) != 1:
        raise LookupError(f"Expected one place of `{old}`, got {len(found)}. Mend `tests.mutants.native.FAULTS`.")
    ((path, match),) = found
    return path.relative_to(ROOT), texts[path][: match.start()] + new + texts[path][match.end() :]


def verdict(fault: tuple[str, str] | None) -> str:
    """What the tests say of a copy of the package whose library was built with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_package(Path(folder))
        if fault is not None:
            path, text = planted(*fault)
            (copy / path).write_text(text)
        said = hatch_build.build(copy, copy / hatch_build.LIBRARY)
        return pytest_in(copy, TESTS, say=fault is None) if "not built" not in said else said


def main() -> int:
    """A line for each fault; 1 where one survives, 2 where the tests fail without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.native", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose sentence holds one of these")
    words = parser.parse_args().words
    if (sound := verdict(None)) != SURVIVED:
        print(f"The tests fail without a fault ({sound}): nothing is proved.")
        return 2
    chosen = {what: fault for what, fault in FAULTS.items() if not words or any(word in what for word in words)}
    verdicts = []
    for what, fault in chosen.items():
        verdicts.append(verdict(fault))
        print(f"{verdicts[-1]:<13} {what}", flush=True)
    killed = verdicts.count(KILLED)
    print(f"{killed} of {len(verdicts)} faults are noticed.")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
