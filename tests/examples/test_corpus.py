# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import yaml
from examples.sentiment import corpus
from examples.sentiment.corpus import Sentence
from examples.sentiment.prepare import Plan, prepared
from hypothesis import given
from hypothesis import strategies as st

from kompakt.api.base import Model
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.profile import HardwareProfileSpec

MANIFESTS = Path(__file__).resolve().parents[2] / "examples" / "sentiment"

sentences = st.lists(
    st.builds(
        Sentence,
        text=st.text(st.characters(codec="ascii", exclude_characters="\t\n"), min_size=1),
        rating=st.floats(-4, 4),
        domain=st.sampled_from(["tweets", "movie"]),
    ),
    max_size=60,
)


def sdist(path: Path, files: dict[str, str]) -> Path:
    """An archive in an archive, as the package is."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            data = text.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path, mode="w:gz") as archive:
        info = tarfile.TarInfo("p-1/additional_resources/hutto_ICWSM_2014.tar.gz")
        info.size = len(inner.getvalue())
        archive.addfile(info, io.BytesIO(inner.getvalue()))
    return path


def test_all_four_domains_are_read(tmp_path: Path) -> None:
    """Sentences keep their domain; entities, line ends and tabs within the text are handled."""
    archive = sdist(
        tmp_path / "p.tar.gz",
        {
            "tweets_GroundTruth.txt": "1\t2.5\tso happy &amp; well\r\n",
            "amazonReviewSnippets_GroundTruth.txt": "1_1\t-0.9\tbroken\r\n",
            "movieReviewSnippets_GroundTruth.txt": "1\t0.1\ta\u0085film\r\n\r\n",
            "nytEditorialSnippets_GroundTruth.txt": "1_1\t0\tone\ttwo\r\n",
        },
    )

    assert corpus.read(archive) == [
        Sentence("so happy & well", 2.5, "tweets"),
        Sentence("broken", -0.9, "amazon"),
        Sentence("a\u0085film", 0.1, "movie"),
        Sentence("one\ttwo", 0.0, "nyt"),
    ]


def test_a_line_of_another_form_is_an_error() -> None:
    """A changed package is noticed, with the line."""
    with pytest.raises(ValueError, match="line 2 of the tweets sentences"):
        list(corpus.parse("tweets", ["1\t0.5\tfine", "no tabs"]))


@pytest.mark.parametrize(
    ("rating", "label"),
    [(-0.5, "negative"), (-0.49, "neutral"), (0.49, "neutral"), (0.5, "positive")],
)
def test_the_class_follows_from_the_rating(rating: float, label: str) -> None:
    """The threshold itself belongs to the outer class."""
    assert Sentence("x", rating, "d").label(0.5) == label


def test_a_repeated_sentence_counts_once() -> None:
    """Its rating is the mean of all; case and spaces do not make it another one."""
    found = corpus.unique(
        [Sentence("Good  film", 1.0, "a"), Sentence("good film", 2.0, "b"), Sentence("x", 0, "a")]
    )

    assert found == [Sentence("Good  film", 1.5, "a"), Sentence("x", 0.0, "a")]


@given(sentences)
def test_splits_are_disjoint_and_do_not_depend_on_the_order(rows: list[Sentence]) -> None:
    """Every sentence is in exactly one split, the same one whatever the order of the files."""
    rows = corpus.unique(rows)
    sizes = {"one": len(rows) // 2, "two": len(rows) // 4}
    splits, rest = corpus.split(rows, sizes, salt="s")
    again, rest_again = corpus.split(list(reversed(rows)), sizes, salt="s")

    together = [s.key for part in (*splits.values(), rest) for s in part]
    assert sorted(together) == sorted(s.key for s in rows)
    assert (splits, rest) == (again, rest_again)


def test_too_few_sentences_are_an_error() -> None:
    """Nobody gets a smaller evaluation than was asked for."""
    with pytest.raises(ValueError, match="need 3 sentences, but there are 1"):
        corpus.split([Sentence("x", 0, "d")], {"a": 1, "b": 2}, salt="s")


def test_what_decides_the_content_decides_the_key() -> None:
    """A changed plan or package makes another folder, so that nothing stale is used."""
    keys = {
        Plan().key("r"),
        Plan(neutral_threshold=0.4).key("r"),
        Plan(sizes={"training": 1}).key("r"),
        Plan().key("other requirements"),
    }

    assert len(keys) == 4


def test_an_unfinished_example_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without its facts is not taken for a prepared example."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = Plan().key((MANIFESTS / "requirements.txt").read_text())
    (tmp_path / "kompakt" / "example" / key).mkdir(parents=True)

    assert prepared() is None


def test_the_manifests_say_nothing_that_the_api_does_not_know() -> None:
    """A misspelt field would be pruned silently by the API server."""
    kinds: dict[str, type[Model]] = {
        "CompressionPolicy": CompressionPolicySpec,
        "HardwareProfile": HardwareProfileSpec,
    }
    found = [
        document
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]

    for document in found:
        if model := kinds.get(document["kind"]):
            model.model_validate(document["spec"], extra="forbid")
    assert [d["kind"] for d in found][-1] == "CompressionPolicy"


def test_the_policy_names_what_is_there() -> None:
    """Profiles and claims that the policy names are among the manifests."""
    documents = [
        document
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    spec = CompressionPolicySpec.model_validate(documents[-1]["spec"])

    for target in spec.targets:
        assert ("HardwareProfile", target.hardware_profile_ref.name) in names
    for uri in (spec.model.uri, *(s.uri for s in spec.data.by_role().values())):
        assert ("PersistentVolumeClaim", uri.removeprefix("pvc://").split("/")[0]) in names
    assert spec.store.persistent_volume_claim is not None
    assert ("PersistentVolumeClaim", spec.store.persistent_volume_claim.name) in names
