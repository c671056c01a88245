"""METEOR 1.5 and SPICE, computed by the Java programs of pycocoevalcap."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACKAGE = "pycocoevalcap"
OLDEST_JAVA = 8
# SPICE caches parses with fst 2.47, which uses reflection on java.base; Java 16 and later forbid that.
NEWEST_JAVA = {"spice": 15}
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class JavaUnavailableError(RuntimeError):
    """A Java metric cannot be computed; the message says what is missing and how to install it."""


def check_java(metric: str) -> None:
    """Check that `"meteor"` or `"spice"` can run: pycocoevalcap, a supported Java and, for SPICE, its models.

    Raises:
        JavaUnavailableError: if something is missing or has the wrong version.
    """
    package = _package_folder(metric)
    version = java_version()
    newest = NEWEST_JAVA.get(metric)
    if version is None:
        raise JavaUnavailableError(f"{metric} needs Java, and there is no working `java` on the PATH")
    problems = []
    if version < OLDEST_JAVA or (newest is not None and version > newest):
        wanted = f"Java {OLDEST_JAVA} to {newest}" if newest is not None else f"Java {OLDEST_JAVA} or later"
        problems.append(f"it needs {wanted}, and `java` is version {version}")
    if metric == "spice":
        lacking = [name for name in SPICE_MODELS if not (package / "spice" / "lib" / name).exists()]
        if lacking:
            problems.append(
                f"{package / 'spice' / 'lib'} lacks {' and '.join(lacking)} (Stanford CoreNLP 2015-12-09, 0.5 GB); "
                f"download them with `python -m {PACKAGE}.spice.get_stanford_models`"
            )
    if problems:
        raise JavaUnavailableError(f"{metric} cannot run: {'; and '.join(problems)}")


def java_version() -> int | None:
    """Major version of the `java` on the PATH (8 for "1.8.0"); None if there is none that works."""
    java = shutil.which("java")
    if java is None:
        return None
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr + done.stdout)
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2] or 0)
    return minor if major == 1 else major


def meteor_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """METEOR 1.5 of the corpus and of each photo (shape `(num_photos,)`), as fractions.

    The corpus score is computed from statistics summed over photos; it is not the mean of the photos' scores.

    Args:
        predictions: one tokenized caption per photo, as words separated by spaces.
        references: tokenized captions of each photo, in the same order.

    Raises:
        JavaUnavailableError: if the Java program cannot run.
    """
    check_java("meteor")
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        score, scores = meteor.compute_score(*_keyed(predictions, references))
    except (OSError, ValueError) as error:
        # After an error pycocoevalcap keeps its lock, and would wait for it forever when the object is deleted.
        if meteor.lock.locked():
            meteor.lock.release()
        meteor.meteor_p.kill()
        message = (meteor.meteor_p.stderr.read().decode(errors="replace") if meteor.meteor_p.stderr else "").strip()
        raise JavaUnavailableError(f"METEOR's Java program failed: {message[-500:] or error}") from error
    finally:
        for stream in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            if stream is not None:
                stream.close()
    return float(score), np.array(scores)


def spice_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """SPICE of the corpus and of each photo (shape `(num_photos,)`), as fractions.

    Args:
        predictions: one tokenized caption per photo, as words separated by spaces.
        references: tokenized captions of each photo, in the same order.

    Raises:
        JavaUnavailableError: if the Java program cannot run.
    """
    check_java("spice")
    from pycocoevalcap.spice.spice import Spice

    try:
        score, scores = Spice().compute_score(*_keyed(predictions, references))
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaUnavailableError(f"SPICE's Java program failed: {error}") from error
    return float(score), np.array([photo["All"]["f"] for photo in scores])


def _package_folder(metric: str) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise JavaUnavailableError(f"{metric} needs {PACKAGE}: pip install 'nic_hf[evaluate]'")
    return Path(spec.submodule_search_locations[0])


def _keyed(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return {i: list(captions) for i, captions in enumerate(references)}, {i: [c] for i, c in enumerate(predictions)}
