"""MTEB evaluates a GVE model and agrees with our evaluator (needs what `make parity` installs)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mteb", reason="MTEB brings torch: run where `make parity` installs it")

import datasets
import mteb
import torch
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import VideoCollator
from tokenizers import Tokenizer

from data.uvrb.sets import Sets
from data.uvrb.tasks import TASKS, choose
from evals.mteb.__main__ import main
from evals.mteb.encoder import GVEEncoder, items
from evals.mteb.tasks import metadata, tasks
from evals.mteb.wrapped import MTEBEncoder
from evals.parity.reference import Reference, import_torchvision
from evals.uvrb.__main__ import main as evaluate_uvrb
from gve_jax import GVE
from gve_jax.errors import UserError
from gve_jax.media.sandbox import Sandbox
from gve_jax.retrieval import evaluate as metric_of_queries
from gve_jax.retrieval import rank_positives
from tests import checkpoint_files
from tests.evals.small_uvrb import COLOURS, evaluate, make_benchmark, write_jsonl
from tests.situations import situation

import_torchvision()  # transformers, which MTEB loads, imports it where `make parity` puts it

WORDS = "red green blue ball square left right fast slow".split()
PROMPT = "Find what is described."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint_files.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return GVE.from_pretrained(folder, dtype="float32")


class Words(AbsTaskRetrieval):
    """A real retrieval task, in memory: 40 texts, of which 12 queries have one to three each."""

    metadata = TaskMetadata(
        name="Words",
        description="Texts of a few words.",
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        prompt={"query": PROMPT},
        dataset={"path": "in/memory", "revision": "1"},
    )

    def load_data(self, **kwargs):
        draw = np.random.default_rng(0)
        texts = list(dict.fromkeys(" ".join(draw.choice(WORDS, 5)) for _ in range(60)))[:40]
        self.texts = {f"d{n:02}": text for n, text in enumerate(texts)}
        self.asked = {f"q{n}": " ".join(draw.choice(WORDS, 3)) for n in range(12)}
        self.positives = {
            query: sorted(str(d) for d in draw.choice(list(self.texts), 1 + n % 3, replace=False))
            for n, query in enumerate(self.asked)
        }
        self.dataset = {
            "default": {
                "test": RetrievalSplitData(
                    corpus=_dataset(self.texts),
                    queries=_dataset(self.asked),
                    relevant_docs={q: dict.fromkeys(ds, 1) for q, ds in self.positives.items()},
                    top_ranked=None,
                )
            }
        }
        self.data_loaded = True


def _dataset(texts):
    return datasets.Dataset.from_dict({"id": list(texts), "text": list(texts.values())})


def scores(result):
    return result.task_results[0].scores["test"][0]


@situation(
    "Evaluation",
    "a retrieval task of MTEB",
    "MTEB's scores are those of our evaluator to 1e-5",
    since="0.1.0",
)
def test_mteb_and_our_evaluator_give_equal_scores(model):
    encoder, task = GVEEncoder(model, "tests/small"), Words()
    assert isinstance(encoder, EncoderProtocol)
    found = scores(mteb.evaluate(encoder, task, cache=None, show_progress_bar=False))
    queries = model.encode_query(list(task.asked.values()), prompt=PROMPT)
    corpus = model.encode_document(list(task.texts.values()))
    index = {id: n for n, id in enumerate(task.texts)}
    positives = [[index[id] for id in ids] for ids in task.positives.values()]
    ranks = rank_positives(queries, corpus, positives, list(task.texts))
    for ours, theirs in (
        ("ndcg@10", "ndcg_at_10"),
        ("recall@1", "recall_at_1"),
        ("recall@10", "recall_at_10"),
        ("hit_rate@10", "hit_rate_at_10"),
        ("precision@3", "precision_at_3"),
    ):
        # MTEB rounds to five digits.
        assert found[theirs] == pytest.approx(metric_of_queries(ours, ranks).mean(), abs=1e-5), ours
    assert 0 < found["ndcg_at_10"] < 1 and found["main_score"] == found["ndcg_at_10"]


@situation(
    "Evaluation",
    "an MTEB task with a prompt for its queries",
    "queries carry the prompt, documents do not",
    since="0.1.0",
)
def test_queries_carry_the_instruction_and_documents_none(model):
    class Listening(GVE):
        def __init__(self, other):
            self.__dict__.update(other.__dict__)
            self.seen = []

        def encode(self, inputs, prompt=None, **options):
            self.seen.append((prompt, len(inputs)))
            return super().encode(inputs, prompt=prompt, **options)

    listening = Listening(model)
    mteb.evaluate(
        GVEEncoder(listening, "tests/small"), Words(), cache=None, show_progress_bar=False
    )
    assert listening.seen == [(PROMPT, 12), (None, 40)]


@situation(
    "Evaluation",
    "an MTEB corpus with empty documents",
    "embedded as transformers embeds the chat template around nothing, as MTEB's GVE does",
    since="0.2.0",
)
def test_an_empty_document_is_embedded_as_the_reference_embeds_it(model, folder):
    class Empty(Words):
        def load_data(self, **kwargs):
            super().load_data()
            self.texts |= {"d40": "", "d41": "  "}
            self.dataset["default"]["test"]["corpus"] = _dataset(self.texts)

    seen = []

    class Keeping(GVEEncoder):
        def encode(self, inputs, **options):
            seen.append(super().encode(inputs, **options))
            return seen[-1]

    found = mteb.evaluate(
        Keeping(model, "tests/small"), Empty(), cache=None, show_progress_bar=False
    )
    assert 0 < scores(found)["ndcg_at_10"] < 1 and seen[1].shape == (42, model.embedding_dim)

    reference = Reference(folder)
    ids = (
        Tokenizer.from_file(model.preprocess.prompt.path)
        .encode(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|im_end|>\n"
            "<|im_start|>assistant\n<|endoftext|>"
        )
        .ids
    )
    torch = reference.torch
    with torch.inference_mode():
        hidden = reference.core(input_ids=torch.tensor([ids])).last_hidden_state[:, -1]
    wanted = torch.nn.functional.normalize(hidden, dim=-1).numpy()
    np.testing.assert_allclose(seen[1][40:] @ wanted[0], 1, atol=1e-5)  # MTEB strips documents


def test_a_row_without_a_medium_is_named():
    rows = datasets.Dataset.from_dict(
        {"id": ["v0", "v1"], "image": [{"bytes": b"abc", "path": None}, None]},
        features=datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()}),
    )
    with pytest.raises(UserError, match="row 1 of MTEB's dataset, id 'v1', has no medium"):
        list(items(SimpleNamespace(dataset=rows)))


def test_mteb_scores_uvrb_as_we_do(folder, tmp_path):
    """Queries of text, image, video, and text with either; reads MTEB's files on disk."""
    names = ("MSRVTT", "MS-TI", "MS-TV", "MSRVTT-I2V", "LoVR-C2V")
    data = make_benchmark(tmp_path / "data", names)
    for name in ("MS-TI", "MS-TV"):
        lines = [{"qid": f"q{n}", "pos": [f"v{n}"], "neg": [f"v{(n + 1) % 5}"]} for n in range(5)]
        write_jsonl(data / f"UVRB/{name}/jsonl/instances.jsonl", lines)
    arguments = ["--model", str(folder), "--data", str(data), "--datasets", ",".join(names)]
    evaluate_uvrb([*arguments, "--output", str(tmp_path / "ours")])
    ours = json.loads((tmp_path / "ours/results.json").read_text())["datasets"]
    main([*arguments, "--output", str(tmp_path / "theirs")])
    files = {
        path.stem: json.loads(path.read_text())
        for path in (tmp_path / "theirs").rglob("UVRB-*.json")
    }
    assert files.keys() == {f"UVRB-{name}" for name in names}
    for name in names:
        theirs = files[f"UVRB-{name}"]["scores"]["test"][0]
        assert theirs["main_score"] == pytest.approx(ours[name]["score"], abs=1e-5), name
        assert theirs["ndcg_at_10"] == pytest.approx(ours[name]["metrics"]["ndcg@10"], abs=1e-5)
    # MTEB reads our evaluator's files as results of the same model, revision and tasks.
    (a,) = mteb.ResultCache(tmp_path / "ours/mteb").load_results().model_results
    (b,) = mteb.ResultCache(tmp_path / "theirs").load_results().model_results
    assert (a.model_name, a.model_revision) == (b.model_name, b.model_revision)
    a, b = ({one.task_name: one.get_score() for one in side.task_results} for side in (a, b))
    assert a == pytest.approx(b, abs=1e-5) and len(a) == len(names)


def test_candidates_are_ranked_alone(model, tmp_path):
    data = make_benchmark(tmp_path, ("MS-TV",))
    lines = [{"qid": f"q{n}", "pos": [f"v{n}"], "candidates": [f"v{n}"]} for n in range(5)]
    write_jsonl(data / "UVRB/MS-TV/jsonl/instances.jsonl", lines)
    (task,) = tasks(Sets(data, tmp_path, moment_pool="candidates"), choose("MS-TV"))
    found = scores(
        mteb.evaluate(GVEEncoder(model, "a/b"), task, cache=None, show_progress_bar=False)
    )
    assert found["main_score"] == 1  # each is the only one of its pool


def test_every_set_has_valid_metadata():
    for task in TASKS:
        said = metadata(task)
        assert said.prompt == {"query": task.instruction}
        assert said.category.endswith("2v") and len(said.category) == 3 + (task.kind == "CMP")
    assert metadata(choose("CMRB")[0]).main_score == "hit_rate_at_10"
    assert metadata(choose("MS-TV")[0]).main_score == "precision_at_1"


def test_refuses_names_that_mteb_refuses(model):
    for name in ("small", "a/b/c", "/b"):
        with pytest.raises(UserError, match="must be organisation/model, not"):
            GVEEncoder(model, name)


class Colours(AbsEncoder):
    """An MTEB encoder as MTEB's are: its collator takes frames of torchcodec's decoders."""

    def __init__(self):
        self.mteb_model_meta = SimpleNamespace(revision="1")
        self.seen = []

    def encode(self, inputs, *, task_metadata, prompt_type, **options):
        self.seen.append((prompt_type.value, self.get_instruction(task_metadata, prompt_type)))
        if "video" in inputs.dataset.features:
            inputs.collate_fn = VideoCollator(target_sampling_rate=16000, num_frames=4)
        rows = []
        for batch in inputs:
            for index in range(len(batch["id"])):
                rows.append(self._row({key: values[index] for key, values in batch.items()}))
        return torch.stack(rows)

    def _row(self, row):
        if (video := row.get("video")) is not None:
            assert video.shape == (4, 3, 48, 64) and video.dtype == torch.uint8
            colours = video[[0, -1]].float().mean(dim=(2, 3)).ravel()
        elif "image" in row:
            colours = torch.from_numpy(np.asarray(row["image"])).float().mean(dim=(0, 1)).repeat(2)
        else:
            words = [COLOURS.get(word, (0, 0, 90)) for word in row["text"].split()]
            colours = torch.tensor([*words[0], *words[-1]], dtype=torch.float32)
        return colours - 60


def test_an_mteb_encoder_is_scored_with_controls(tmp_path):
    names = ("MSRVTT", "CRB-T", "MSRVTT-I2V", "LoVR-C2V")
    data = make_benchmark(tmp_path / "data", names)
    damaged = data / "UVRB/MSRVTT/videos/blue_green.mp4"
    damaged.write_bytes(damaged.read_bytes()[:900])
    model = Colours()
    found = evaluate(
        data,
        tmp_path / "out",
        *("--mteb", "any/model", "--datasets", ",".join(names), "--control", "reversed"),
        *("--max-bad-share", "0.1"),
        load=lambda name: MTEBEncoder(model, name, Sandbox()),
    )
    # As the encoder of tests/evals/small_uvrb.py, which reads the same colours.
    expected = evaluate(
        data, tmp_path / "expected", "--datasets", ",".join(names), "--max-bad-share", "0.1"
    )
    for name in names:
        assert found["datasets"][name]["score"] == expected["datasets"][name]["score"], name
    assert found["datasets"]["MSRVTT"]["left_out"]["documents"] == ["v4"]
    assert found["controls"]["reversed"]["datasets"]["CRB-T"]["score"] == 0
    assert ("query", choose("CRB-T")[0].instruction) in model.seen
    assert ("document", None) in {(kind, text or None) for kind, text in model.seen}
    assert found["fingerprint"]["mteb"] == "any/model"
    meta = next((tmp_path / "out/mteb").rglob("model_meta.json")).read_text()
    assert json.loads(meta)["framework"] == ["PyTorch"]


def test_an_unknown_model_of_mteb_is_one_line(tmp_path, monkeypatch):
    data = make_benchmark(tmp_path / "data", ("MSRVTT",))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="^--mteb no/such-model: ") as caught:
        evaluate(
            data, tmp_path / "out", "--mteb", "no/such-model", "--datasets", "MSRVTT", load=None
        )
    assert "\n" not in str(caught.value)
