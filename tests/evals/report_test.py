"""The report: one file without network or scripts, and its content."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data.uvrb.tasks import TASKS
from evals.uvrb import report
from evals.uvrb.evaluate import choose_examples
from evals.uvrb.figures import rim
from evals.uvrb.output import not_released
from evals.uvrb.pictures import HEIGHT, Pictures
from evals.uvrb.published import comparison
from evals.uvrb.scores import ABILITIES
from gve_jax.errors import UserError
from gve_jax.media import sandbox
from gve_jax.retrieval import Ranks
from tests.evals.small_uvrb import (
    ColourEncoder,
    Settings,
    evaluate,
    make_benchmark,
    make_clip,
    read_jsonl,
    write_jsonl,
)

SETS = ("MSRVTT", "CRB-T", "CMRB", "MS-TI", "LoVR-C2V")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Text, elements and ids of a page; asserts that tags are balanced."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.folder, self.source = path.parent, path.read_text()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag, **attributes):
        return sum(
            name == tag and all(found.get(k) == v for k, v in attributes.items())
            for name, found in self.elements
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = make_benchmark(tmp_path_factory.mktemp("report"), SETS)
    queries = data / "UVRB/LoVR-C2V/jsonl/queries.jsonl"
    lines = read_jsonl(queries)
    for line in lines:
        line["text"] = "<script>alert(1)</script> & " + "long " * 100
    write_jsonl(queries, lines)
    return data


def render(data, out, *more, sets=SETS):
    models = {"m<1>": ColourEncoder(), "none": ColourEncoder(trained=False)}
    options = (
        "--model",
        "m<1>",
        "--datasets",
        ",".join(sets),
        "--report",
        out / "report.html",
        *more,
    )
    evaluate(data, out, *options, load=models.__getitem__)
    return Page(out / "report.html")


def training_run(workdir):
    workdir.mkdir()
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(40):
            line = {"step": step, "time": 0.0, "loss": 3 / (1 + step), "accuracy": step / 40}
            line |= {"learning_rate": 1e-4, "wait_share": 0.01, "stage": step // 20}
            line |= {f"loss/{('T2V_whole', 'I2V')[step % 2]}": float(step), "pairs_per_s": None}
            file.write(json.dumps(line) + "\n")
        file.write('{"step": 40, "lo')  # cut off by a kill
    stage = {"stage": 0, "first_step": 0, "last_step": 20, "sigma": 0.1, "batches": {}}
    stage |= {"R": {"T2V_whole": 0.1234, "I2V": -0.2}, "P": {"T2V_whole": 0.75, "I2V": 0.25}}
    stages = [stage, stage | {"stage": 1, "first_step": 20, "last_step": 40, "sigma": 1.0}]
    stages[1]["batches"] = {"T2V_whole": 15, "I2V": 1234}
    (workdir / "curriculum.json").write_text(json.dumps({"stages": stages}))
    return workdir


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    return render(data, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def full(data, tmp_path_factory):
    """With curves, an untrained model and shuffled frames."""
    folder = tmp_path_factory.mktemp("full")
    run = training_run(folder / "run")
    return render(data, folder / "out", "--run", str(run), "--baseline", "none", "--control")


def test_report_with_curves_baseline_and_control(full):
    for anchor in ("sets", "abilities", "training", "curriculum", "examples", "method"):
        assert full.count("section", id=anchor) == 1 and full.count("a", href=f"#{anchor}") == 1
    for name in SETS:
        assert full.count("h3", id=name) == 1
    drawings = {found["aria-label"] for tag, found in full.elements if tag == "svg"}
    assert drawings == {
        "Score of each set with chance and controls",
        "Radar plot of the nine abilities",
        "Training curves",
        "Loss by source",
        "The curriculum: P and R by source and stage",
        "Differences: this model less the untrained one",
        "Differences: this model less itself with shuffled frames",
        "Correlation of abilities over models",
    } - {"Radar plot of the nine abilities"}  # which needs all of them
    for words in (
        "untrained",
        "shuffled",
        "over shuffled frames",
        "75%",
        "0.12",
        "σ 1.00",
        "T2V_whole",
        "share of time waiting for data",
        "right video at rank 1 of 5",
        # The second stage's batches of I2V, and the mean loss of steps 21, 23, ... 39.
        "1,234",
        "30.000",
    ):
        assert words in full.text, words
    # Four queries of each of five sets, with three documents and the right one, if missing.
    assert full.count("div", **{"class": "example"}) == 20
    assert full.count("li", **{"class": "wrong"}) >= 20 * 2
    rights = full.count("li", **{"class": "right"}) + full.count("li", **{"class": "right gap"})
    assert rights == 20
    # Each can be looked up in the data: ids, files, cosines.
    assert "query q0" in full.text and "v3 · videos/red_green.mp4" in full.text
    assert "images/0.png" in full.text and "1. right1.000" in full.text
    # The query clips of LoVR-C2V, and the query images of MS-TI.
    assert full.count("img", alt="clip of the query") == 4
    assert full.count("img", alt="image of the query") == 4


def test_variants_and_comparisons_have_sections(data, tmp_path):
    out = tmp_path / "out"
    render(data, tmp_path / "other", sets=("MSRVTT",))
    options = "--datasets", "MSRVTT", "--frames", "2,8", "--tokens", "50", "--reencode", "crf=40"
    options += "--compare", tmp_path / "other", "--report", out / "report.html"
    evaluate(data, out, *options, load=lambda _: Settings())
    page = Page(out / "report.html")
    drawings = {found["aria-label"] for tag, found in page.elements if tag == "svg"}
    assert drawings >= {
        "Scores by frames of a video",
        "Scores by tokens of a frame, at most",
        "Differences: this model less itself on documents at libx264-crf40",
        "Differences: this model less m<1>",
    }
    for anchor in ("sweeps", "differences", "published"):
        assert page.count("section", id=anchor) == 1 and page.count("a", href=f"#{anchor}") == 1
    assert 'id="published"><h2>Published models</h2>\n<details><summary>' in page.source  # folded
    assert "Not the released sets: sizes differ on 1 of 1" in page.text
    assert "This run is not among them" in page.text and "0.516*" in page.text
    assert "Sizes, further metrics and costs" in page.text


def test_released_sizes_are_shown_with_the_papers_models():
    results = {
        "averages": {"AVG-A": 0.5, "AVG-D": 0.5},
        "abilities": dict.fromkeys(ABILITIES, 0.5),
        "model": "<us>",
        "published": comparison(
            {t.name: {"queries": t.queries, "corpus": t.corpus} for t in TASKS}
        ),
    }
    macros = report.template("macros.html").module
    found = report.published_radar(results)
    assert list(found) == ["GVE-7B", "GVE-3B"] and found["GVE-7B"]["S"] == 0.821
    table = macros.published_models(report.published_models(results))
    assert "&lt;us&gt;" in table and "this run" in table and "not among them" not in table
    assert not_released(results) == ""
    results["published"]["differing"] = {"MSRVTT": "x"}
    assert report.published_radar(results) == {}
    table = macros.published_models(report.published_models(results))
    assert "this run" not in table


def test_page_has_no_requests_or_scripts(plain):
    assert plain.count("script") == 0 and plain.count("link") == 0
    assert "alert(1)" in plain.text and "m<1>" in plain.text  # shown, not run
    for tag, found in plain.elements:
        for attribute in ("src", "href", "xlink:href", "srcset"):
            value = found.get(attribute, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, value[:50])
    assert "default-src 'none'" in next(
        found["content"] for tag, found in plain.elements if "http-equiv" in found
    )
    style = plain.source[plain.source.index("<style>") : plain.source.index("</style>")]
    assert "url(" not in style and "@import" not in style and "color-scheme: dark" in style
    assert plain.count("details") == 4 + 3 and "all 528 characters" in plain.text


def test_figures_use_the_colours_of_the_page(full):
    drawn = full.source[full.source.index("<svg") :]
    for name in ("ink", "muted", "grid", "model", "untrained", "shuffled"):
        assert f"var(--{name})" in drawn, name
    assert "#000000" not in drawn and "<text" in drawn
    ids = [found["id"] for _, found in full.elements if "id" in found]
    for used in {part.split(")")[0] for part in drawn.split("url(#")[1:]}:
        assert used in ids
    named = [name for name in ids if not name.startswith(("m", "p"))]
    assert len(named) == len(set(named))


@pytest.mark.parametrize(("highest", "expected"), [(0.0, 0.2), (0.2, 0.2), (0.21, 0.4), (1, 1)])
def test_radar_plot_contains_every_score(highest, expected):
    sides = {"model": {"CG": highest, "S": None}, "chance": {"CG": 0.0, "S": 0.0}}
    assert rim(sides) == pytest.approx(expected)


def test_what_does_not_apply_is_left_out(data, plain, tmp_path):
    for anchor in ("training", "curriculum", "differences", "sweeps"):
        assert plain.count("section", id=anchor) == plain.count("a", href=f"#{anchor}") == 0
    assert plain.count("section", id="abilities") == 1 and plain.count("svg") == 2  # no radar plot
    rows = plain.source[plain.source.index('id="abilities"') :].partition("</section>")[0]
    assert rows.count("<tr") == 1 + 1  # T alone has all its sets
    folder = data / "UVRB/MSRVTT"
    options = "--set", f"FILMS={folder}", "--instruction", "", "--report", tmp_path / "own.html"
    evaluate(None, tmp_path / "own", *options)
    page = Page(tmp_path / "own.html")
    anchors = [found["id"] for tag, found in page.elements if tag == "section"]
    assert anchors == ["sets", "examples", "method"] and "sets of UVRB" not in page.text
    assert "1 set of your own" in page.text and "Queries have no instruction." in page.text


def test_method_says_when_and_how_and_on_which_data(data, plain):
    results = json.loads((plain.folder / "results.json").read_text())
    for key in ("date", "command"):
        assert results[key] in plain.text
    assert results["command"].startswith("python -m evals.uvrb --data ")
    assert " --model 'm<1>' " in results["command"]
    assert results["digests"]["CMRB"]["media"] in plain.text


@pytest.mark.parametrize(
    ("failures", "expected"), [(0, 0), (2, 1), (17, 1), (50, 2), (83, 3), (99, 3), (100, 4)]
)
def test_examples_show_as_many_failures_as_the_score_says(failures, expected):
    count = 100
    ranks = Ranks(
        query=np.arange(count),
        document=np.arange(count),
        score=np.zeros(count, np.float32),
        rank=np.where(np.arange(count) < failures, 7, 1),
        pessimistic=np.ones(count, int),
        queries=count,
        corpus=count,
    )
    chosen = choose_examples(TASKS[0], ranks, 4)
    assert len(set(chosen)) == 4
    assert [query < failures for query in chosen] == [True] * expected + [False] * (4 - expected)


def test_names_missing_training_records(data, tmp_path):
    (tmp_path / "run").mkdir()
    page = render(data, tmp_path / "b", "--run", str(tmp_path / "run"), sets=("MSRVTT",))
    assert f"{tmp_path}/run/metrics.jsonl is missing." in page.text
    assert f"{tmp_path}/run/curriculum.json is missing." in page.text
    assert page.count("section", id="abilities") == 0
    (tmp_path / "run/metrics.jsonl").write_text("")
    (tmp_path / "run/curriculum.json").write_text('{"stages": []}')
    page = render(data, tmp_path / "c", "--run", str(tmp_path / "run"), sets=("MSRVTT",))
    assert "metrics.jsonl is empty." in page.text and "has no stage yet" in page.text


def test_refuses_damaged_training_records_by_line(data, tmp_path):
    run = training_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 0}\n{oops\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not valid JSON"):
        render(data, tmp_path / "out", "--run", str(run))


def test_pictures_stop_at_the_budget_and_survive_damaged_media(tmp_path):
    make_clip(tmp_path / "a.mp4", "red blue")
    (tmp_path / "b.mp4").write_bytes(b"junk")
    pictures = Pictures()
    first = pictures.clip(tmp_path / "a.mp4", 'a "quote"')
    assert 'alt="a &quot;quote&quot;"' in first and f'height="{HEIGHT}"' in first
    assert "cannot be read" in pictures.clip(tmp_path / "b.mp4", "b")
    small = Pictures(budget=len(first))
    assert "<img" in small.clip(tmp_path / "a.mp4", "one")
    assert "left out" in small.clip(tmp_path / "a.mp4", "two")


def test_wide_image_fits_the_strip(tmp_path):
    Image.new("RGB", (2000, 10)).save(tmp_path / "wide.png")
    assert "<img" in Pictures().image(tmp_path / "wide.png", "wide")


def test_a_file_that_crashes_its_decoder_costs_one_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    (tmp_path / "bad.mp4").write_bytes(b"CRASH")
    make_clip(tmp_path / "good.mp4", "red blue")
    pictures = Pictures()
    assert "cannot be read" in pictures.clip(tmp_path / "bad.mp4", "bad")
    assert "<img" in pictures.clip(tmp_path / "good.mp4", "good")
